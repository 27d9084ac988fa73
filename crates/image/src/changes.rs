//! Applies Dockerfile instructions to an image's configuration, for `import --change` and `commit
//! --change`.

use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, json};
use whelk_dockerfile::{Budget, Command, Environment, Healthcheck, Instruction, Lexer, Pair};

use crate::config::ContainerConfig;
use crate::error::{Error, Result};

const SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// The instructions that can be changes.
const CHANGES: [&str; 11] = [
    "cmd",
    "entrypoint",
    "env",
    "expose",
    "healthcheck",
    "label",
    "onbuild",
    "stopsignal",
    "user",
    "volume",
    "workdir",
];
/// Maximum total size of the configuration's strings in bytes. Variables that repeatedly double
/// their own value must not exhaust memory.
const MAX_CONFIG_SIZE: usize = 2 << 20;

/// Applies instructions to `config` in order. The changes are parsed as the lines of one
/// Dockerfile: a parser directive or a line continuation in one of them applies to those after it.
/// With no changes, `config` is unchanged.
///
/// # Errors
/// Returns an error with Docker's text if an instruction cannot be used as a change or is
/// malformed. The stop signal is not validated here; the engine does that.
pub fn apply(config: &mut ContainerConfig, changes: &[String]) -> Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let invalid = |error: whelk_dockerfile::Error| Error::invalid(error.to_string());
    let dockerfile = whelk_dockerfile::parse(&changes.join("\n")).map_err(invalid)?;
    if let Some(line) = dockerfile
        .lines
        .iter()
        .find(|line| !CHANGES.iter().any(|name| line.is(name)))
    {
        return Err(Error::invalid(format!(
            "{} is not a valid change command",
            line.instruction
        )));
    }
    let mut command_given = false;
    let budget = Budget::default();
    for line in &dockerfile.lines {
        let instruction = {
            let environment = Environment::new(config.env.iter().map(String::as_str));
            Instruction::read(line, &Lexer::new(dockerfile.escape, &environment, &budget))
                .map_err(invalid)?
        };
        apply_instruction(config, instruction, &mut command_given)?;
        if size(config) > MAX_CONFIG_SIZE {
            return Err(Error::invalid(format!(
                "the changes make a configuration of more than {MAX_CONFIG_SIZE} bytes"
            )));
        }
    }
    Ok(())
}

fn size(config: &ContainerConfig) -> usize {
    let lists = [
        &config.env,
        &config.cmd,
        &config.entrypoint,
        &config.on_build,
    ]
    .into_iter()
    .flatten()
    .map(String::len);
    let labels = config
        .labels
        .iter()
        .map(|(key, value)| key.len() + value.len());
    let paths = config.volumes.keys().map(String::len);
    lists.chain(labels).chain(paths).sum()
}

fn apply_instruction(
    config: &mut ContainerConfig,
    instruction: Instruction,
    command_given: &mut bool,
) -> Result<()> {
    match instruction {
        Instruction::Cmd(command) => {
            *command_given |= matches!(&command, Command::Shell(Some(_)))
                || matches!(&command, Command::Exec(list) if !list.is_empty());
            config.cmd = with_shell(config, command);
        }
        Instruction::Entrypoint(Command::Shell(None)) => config.entrypoint = Vec::new(),
        Instruction::Entrypoint(command) => {
            config.entrypoint = with_shell(config, command);
            // The inherited command was meant for the previous entrypoint.
            if !*command_given {
                config.cmd = Vec::new();
            }
        }
        Instruction::Env(pairs) => pairs
            .into_iter()
            .for_each(|pair| set_variable(&mut config.env, pair)),
        Instruction::Expose(ports) => {
            for port in ports {
                config
                    .exposed_ports
                    .extend(expand_ports(&port)?.map(|port| (port, json!({}))));
            }
        }
        Instruction::Healthcheck(check) => config.healthcheck = Some(health_json(check)),
        Instruction::Label(pairs) => config
            .labels
            .extend(pairs.into_iter().map(|pair| (pair.key, pair.value))),
        Instruction::Onbuild(trigger) => config.on_build.push(trigger),
        Instruction::StopSignal(signal) => config.stop_signal = signal,
        Instruction::User(user) => config.user = user,
        Instruction::Volume(paths) => config
            .volumes
            .extend(paths.into_iter().map(|path| (path, json!({})))),
        Instruction::Workdir(path) if path.is_empty() => {
            return Err(Error::invalid("cannot normalize nothing"));
        }
        Instruction::Workdir(path) => config.working_dir = join(&config.working_dir, &path),
        // `apply` has refused what is not in `CHANGES`.
        Instruction::Add(_)
        | Instruction::Arg(_)
        | Instruction::Copy(_)
        | Instruction::Maintainer(_)
        | Instruction::Run(_)
        | Instruction::Shell(_) => {}
    }
    Ok(())
}

fn with_shell(config: &ContainerConfig, command: Command) -> Vec<String> {
    match command {
        Command::Exec(list) => list,
        Command::Shell(line) => {
            let shell = if config.shell.is_empty() {
                SHELL.map(str::to_owned).to_vec()
            } else {
                config.shell.clone()
            };
            shell.into_iter().chain(line).collect()
        }
    }
}

fn set_variable(environment: &mut Vec<String>, pair: Pair) {
    let entry = format!("{}={}", pair.key, pair.value);
    match environment
        .iter_mut()
        .find(|known| known.split('=').next() == Some(&pair.key))
    {
        Some(known) => *known = entry,
        None => environment.push(entry),
    }
}

/// Resolves `path` against the working directory `current` and removes `.` and `..`.
fn join(current: &str, path: &str) -> String {
    let mut joined = PathBuf::from("/");
    for component in Path::new("/").join(current).join(path).components() {
        match component {
            Component::Normal(part) => joined.push(part),
            Component::ParentDir => {
                joined.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    joined.to_string_lossy().into_owned()
}

/// Expands `[[IP:]HOST:]PORT[-PORT][/PROTOCOL]` to `PORT/PROTOCOL` for each container port. The IP
/// address and host ports are validated and ignored.
fn expand_ports(text: &str) -> Result<impl Iterator<Item = String> + use<>> {
    let (host, container) = text.rsplit_once(':').unwrap_or(("", text));
    let (ip, host) = host.rsplit_once(':').unwrap_or(("", host));
    let (ports, protocol) = container.split_once('/').unwrap_or((container, "tcp"));
    let protocol = if protocol.is_empty() {
        "tcp".to_owned()
    } else {
        protocol.to_lowercase()
    };
    if !ip.is_empty()
        && ip
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>()
            .is_err()
    {
        return Err(Error::invalid(format!("invalid IP address: {ip}")));
    }
    if ports.is_empty() {
        return Err(Error::invalid(format!("no port specified: {text}<empty>")));
    }
    let (first, last) =
        range(ports).ok_or_else(|| Error::invalid(format!("invalid containerPort: {ports}")))?;
    if !host.is_empty() && range(host).is_none() {
        return Err(Error::invalid(format!("invalid hostPort: {host}")));
    }
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(Error::invalid(format!("invalid proto: {protocol}")));
    }
    Ok((first..=last).map(move |port| format!("{port}/{protocol}")))
}

fn range(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split('-').map(|number| number.parse::<u16>().ok());
    let first = numbers.next()??;
    // Docker ignores what follows the second number.
    let last = numbers.next().unwrap_or(Some(first))?;
    (first <= last).then_some((first, last))
}

/// Encodes a health check as image configurations hold it: durations in nanoseconds, fields with
/// default values omitted.
fn health_json(check: Healthcheck) -> serde_json::Value {
    let mut fields = Map::new();
    fields.insert("Test".into(), json!(check.test));
    for (name, value) in [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
        ("Retries", check.retries.into()),
    ] {
        if value != 0 {
            fields.insert(name.into(), json!(value));
        }
    }
    fields.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(changes: &[&str]) -> Result<ContainerConfig> {
        let mut config = ContainerConfig {
            env: vec!["P=a".into()],
            cmd: vec!["old".into()],
            ..ContainerConfig::default()
        };
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        apply(&mut config, &changes)?;
        Ok(config)
    }

    #[test]
    fn instructions_change_the_configuration() {
        let config = changed(&[
            "ENV Q=$P:/x R=${P}b",
            "ENV P=$P:/x",
            "EXPOSE 90-92 53/UDP 8080:80",
            "WORKDIR x",
            "WORKDIR ../y/./z",
            "HEALTHCHECK --interval=5s --retries=3 CMD echo a  b",
            "CMD [\"a\", \"b c\"]",
            "ENTRYPOINT run it",
            "STOPSIGNAL SIGKILL",
            "VOLUME /a /b",
            "ONBUILD RUN x",
        ])
        .unwrap();
        assert_eq!(config.env, ["P=a:/x", "Q=a:/x", "R=ab"]);
        assert_eq!(
            config.exposed_ports.keys().collect::<Vec<_>>(),
            ["53/udp", "80/tcp", "90/tcp", "91/tcp", "92/tcp"]
        );
        assert_eq!(config.working_dir, "/y/z");
        assert_eq!(
            config.healthcheck,
            Some(
                json!({"Test": ["CMD-SHELL", "echo a  b"], "Interval": 5_000_000_000_i64, "Retries": 3})
            )
        );
        assert_eq!(config.cmd, ["a", "b c"]);
        assert_eq!(config.entrypoint, ["/bin/sh", "-c", "run it"]);
        assert_eq!(
            (config.stop_signal.as_str(), config.on_build.as_slice()),
            ("SIGKILL", ["RUN x".to_owned()].as_slice())
        );
        assert_eq!(config.volumes.keys().collect::<Vec<_>>(), ["/a", "/b"]);
        assert_eq!(
            changed(&["ENTRYPOINT [\"x\"]"]).unwrap().cmd,
            Vec::<String>::new(),
            "ENTRYPOINT resets the image's command"
        );
        assert_eq!(
            changed(&["# escape=`", "ENV A=1 `", "B=2"]).unwrap().env,
            ["P=a", "A=1", "B=2"]
        );
        assert_eq!(changed(&[]).unwrap().cmd, ["old"]);
    }

    #[test]
    fn rejects_variables_that_grow_exponentially() {
        let mut changes = vec!["ENV A=xxxxxxxxxxxxxxxx"];
        changes.extend(["ENV A=$A$A"; 14]);
        changes.extend(["LABEL a=$A b=$A c=$A d=$A e=$A f=$A"]);
        assert!(changed(&changes).unwrap().labels["f"].len() == 16 << 14);
        changes.extend(["LABEL g=$A h=$A"]);
        let refused = |changes: &[&str]| changed(changes).unwrap_err().to_string();
        let error = refused(&changes);
        assert!(error.contains("more than 2097152 bytes"), "{error}");
        let mut doubled = vec!["ENV A=xxxxxxxxxxxxxxxx"];
        doubled.extend(["ENV A=$A$A"; 60]);
        let error = refused(&doubled);
        assert!(error.contains("longer than 1048576 bytes"), "{error}");
    }

    #[test]
    fn rejects_changes_that_take_long_together() {
        let long = format!("ENV A={}", "x".repeat(60_000));
        let pattern = format!("LABEL a=${{A##{}}}", "?".repeat(1_500));
        assert!(changed(&[&long, &pattern]).is_ok());
        let error = changed(&[&long, &pattern, &pattern]).unwrap_err();
        assert!(error.to_string().contains("steps"), "{error}");
    }

    #[test]
    fn rejects_invalid_changes() {
        for (change, expected) in [
            ("RUN x", "RUN is not a valid change command"),
            ("foo x", "foo is not a valid change command"),
            ("MAINTAINER x", "MAINTAINER is not a valid change command"),
            ("", "file with no instructions"),
            ("EXPOSE x", "invalid containerPort: x"),
            ("EXPOSE 70000", "invalid containerPort: 70000"),
            ("EXPOSE 92-90", "invalid containerPort: 92-90"),
            ("EXPOSE 80/foo", "invalid proto: foo"),
            ("ENV A", "ENV must have two arguments"),
        ] {
            assert_eq!(changed(&[change]).unwrap_err().to_string(), expected);
        }
    }
}
