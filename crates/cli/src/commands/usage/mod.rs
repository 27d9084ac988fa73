//! The definitions of all commands, with usage lines in the form of Docker's.

pub(crate) mod help;
pub(crate) mod mistakes;

use clap::{Arg, Command, CommandFactory};

use crate::commands::Cli;
use crate::flags::flags_of;

/// Returns the definitions of all commands, with usage lines in Docker's form.
pub(crate) fn tree() -> Command {
    let mut root = Cli::command();
    root.build();
    let groups = groups(&root);
    let template = format!(
        "Usage:  {{usage}}\n\n{{about}}\n\n{groups}Global Options:\n{{options}}{{after-help}}"
    );
    with_usage(root, "whelk").help_template(template)
}

/// The commands that are listed first.
const COMMON: [&str; 13] = [
    "run", "exec", "ps", "build", "bake", "pull", "push", "images", "login", "logout", "search",
    "version", "info",
];

/// Returns the list of the root's commands in Docker's groups.
fn groups(root: &Command) -> String {
    let shown = || {
        root.get_subcommands()
            .filter(|command| !command.is_hide_set())
    };
    let width = shown().map(|command| command.get_name().len()).max();
    let width = width.unwrap_or_default();
    let line = |command: &Command| {
        let about = command.get_about().map(ToString::to_string);
        let about = about.unwrap_or_default();
        format!("  {:width$}  {about}\n", command.get_name())
    };
    let is_common = |command: &Command| COMMON.contains(&command.get_name());
    let common = COMMON.iter().filter_map(|name| root.find_subcommand(name));
    let groups = shown().filter(|command| command.has_subcommands());
    let others = shown().filter(|command| !command.has_subcommands() && !is_common(command));
    let (common, mut groups, mut others): (String, Vec<String>, Vec<String>) = (
        common.map(line).collect(),
        groups.map(line).collect(),
        others.map(line).collect(),
    );
    groups.sort_unstable();
    others.sort_unstable();
    format!(
        "Common Commands:\n{common}\nManagement Commands:\n{}\nCommands:\n{}\n",
        groups.concat(),
        others.concat()
    )
}

/// Returns the definitions of the commands that occur among `words`, and only the names of the
/// others: building all definitions takes longer than most commands do.
pub(crate) fn named_by(words: &[String]) -> Command {
    let mut root = without_unnamed(Cli::command(), words);
    root.build();
    root
}

fn without_unnamed(command: Command, words: &[String]) -> Command {
    command.mut_subcommands(|command| {
        let named = std::iter::once(command.get_name())
            .chain(command.get_all_aliases())
            .any(|name| words.iter().any(|word| word == name));
        if named {
            without_unnamed(command, words)
        } else {
            Command::new(command.get_name().to_owned())
        }
    })
}

fn with_usage(command: Command, name: &str) -> Command {
    let line = usage_line(&command, name);
    command
        .override_usage(line)
        .help_template("Usage:  {usage}\n\n{about}\n\n{all-args}{after-help}")
        .mut_subcommands(|command| {
            let name = format!("{name} {}", command.get_name());
            with_usage(command, &name)
        })
}

/// Returns the usage line: `whelk run [OPTIONS] IMAGE [COMMAND] [ARG...]`.
pub(super) fn usage_line(command: &Command, name: &str) -> String {
    let options = if flags_of(command).any(|flag| !flag.is_hide_set()) {
        " [OPTIONS]"
    } else {
        ""
    };
    if command.has_subcommands() {
        return format!("{name}{options} COMMAND");
    }
    let arguments: String = command
        .get_positionals()
        .map(|argument| format!(" {}", argument_text(argument)))
        .collect();
    format!("{name}{options}{arguments}")
}

fn argument_text(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    let count = argument.get_num_args().unwrap_or_default();
    let many = count.max_values() == usize::MAX;
    match names {
        [first, second] if count.min_values() > 1 => format!("{first} {second} [ARG...]"),
        [first, second] => format!("{first} [{second}] [ARG...]"),
        [name] if !argument.is_required_set() => format!("[{name}]"),
        [name] if many => format!("{name} [{name}...]"),
        [name] => name.to_string(),
        _ => argument.get_id().as_str().to_uppercase(),
    }
}

/// Returns the command names at the beginning of normalized words.
pub(crate) fn path_of(tree: &Command, words: &[String]) -> Vec<String> {
    let mut command = tree;
    let mut path = Vec::new();
    for word in words.iter().filter(|word| !word.starts_with("--")) {
        match command.find_subcommand(word) {
            Some(found) => command = found,
            None => break,
        }
        path.push(word.clone());
    }
    path
}

pub(super) fn find<'t>(tree: &'t Command, path: &[String]) -> Option<&'t Command> {
    path.iter()
        .try_fold(tree, |command, name| command.find_subcommand(name))
}

/// Returns `whelk` followed by the names of a command.
pub(super) fn program(path: &[String]) -> String {
    std::iter::once("whelk")
        .chain(path.iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_lines_name_options_and_arguments() {
        let tree = tree();
        for (path, line) in [
            ("run", "whelk run [OPTIONS] IMAGE [COMMAND] [ARG...]"),
            (
                "container exec",
                "whelk container exec [OPTIONS] CONTAINER COMMAND [ARG...]",
            ),
            ("top", "whelk top CONTAINER [ps OPTIONS]"),
            ("stop", "whelk stop [OPTIONS] CONTAINER [CONTAINER...]"),
            ("ps", "whelk ps [OPTIONS]"),
            ("port", "whelk port CONTAINER [PRIVATE_PORT[/PROTO]]"),
            ("rename", "whelk rename CONTAINER NEW_NAME"),
            ("inspect", "whelk inspect [OPTIONS] NAME|ID [NAME|ID...]"),
            ("network", "whelk network COMMAND"),
        ] {
            let path: Vec<String> = path.split(' ').map(str::to_owned).collect();
            let command = find(&tree, &path).unwrap();
            assert_eq!(usage_line(command, &program(&path)), line);
            assert!(
                command
                    .clone()
                    .render_help()
                    .to_string()
                    .starts_with(&format!("Usage:  {line}\n\n"))
            );
        }
    }

    #[test]
    fn the_list_of_commands_is_in_groups() {
        let text = tree().render_help().to_string();
        let group = |title: &str| {
            let (_, rest) = text.split_once(title).unwrap();
            let lines = rest.lines().skip(1).take_while(|line| !line.is_empty());
            let names = lines.map(|line| line.split_whitespace().next().unwrap());
            names.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(group("\nCommon Commands:")[..3], ["run", "exec", "ps"]);
        assert_eq!(
            group("\nManagement Commands:")[..3],
            ["builder", "buildx", "checkpoint"]
        );
        assert_eq!(
            group("\nCommands:")[..3],
            ["attach", "commit", "completion"]
        );
        assert!(!group("\nGlobal Options:").is_empty());
        // A group has the commands of Docker's, without those of the top level.
        for (path, absent) in [
            ("image", ["images", "rmi"]),
            ("container", ["ps", "containers"]),
        ] {
            let tree = tree();
            let group = find(&tree, &[path.to_owned()]).unwrap();
            for name in absent {
                assert!(
                    group
                        .get_subcommands()
                        .all(|command| command.get_name() != name)
                );
            }
            for command in group.get_subcommands() {
                let about = command.get_about().map(ToString::to_string);
                assert!(!about.unwrap_or_default().contains('`'), "{command:?}");
            }
        }
    }

    /// Asserts that every command below `command` is defined in full when its names are given.
    fn assert_defined(command: &Command, path: &[String]) {
        for child in command.get_subcommands() {
            for name in std::iter::once(child.get_name()).chain(child.get_all_aliases()) {
                let path = [path, &[name.to_owned()]].concat();
                let commands = named_by(&path);
                let found = find(&commands, &path).unwrap();
                assert_eq!(
                    usage_line(found, &program(&path)),
                    usage_line(child, &program(&path))
                );
                let flags = |command: &Command| flags_of(command).count();
                assert_eq!(flags(found), flags(child), "{path:?}");
                assert_defined(child, &path);
            }
        }
    }

    #[test]
    fn named_commands_are_defined_in_full() {
        assert_defined(&tree(), &[]);
        let commands = named_by(&["container".into(), "rm".into()]);
        let kill = ["container".into(), "kill".into()];
        assert_eq!(flags_of(find(&commands, &kill).unwrap()).count(), 0);
    }
}
