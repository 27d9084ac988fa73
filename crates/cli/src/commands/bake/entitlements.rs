//! What a bake file may access: without the user's consent only files below the working directory.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, ErrorKind};
use std::path::{Component, Path, PathBuf};

use whelk_bake::{Cache, Granted, Resolved, Target};

use super::remote::Remote;
use super::target;
use crate::commands::build::is_fetched;
use crate::output::warn;
use crate::ssh::quoted;
use crate::{Failure, Outcome, plain, terminal};

/// What the user allows.
#[derive(Debug, Default)]
pub(super) struct Allowed {
    network_host: bool,
    insecure: bool,
    ssh: bool,
    every_device: bool,
    devices: BTreeSet<String>,
    read: Vec<String>,
    written: Vec<String>,
}

/// What is asked for and not allowed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Missing {
    network_host: bool,
    insecure: bool,
    ssh: bool,
    devices: BTreeSet<String>,
    read: BTreeSet<PathBuf>,
    written: BTreeSet<PathBuf>,
}

impl Allowed {
    /// Reads `--allow`.
    ///
    /// # Errors
    /// Returns an error for an unknown right.
    pub fn parse(given: &[String]) -> Outcome<Self> {
        let mut allowed = Self::default();
        for text in given {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            let value = value.to_owned();
            match (key, value.as_str()) {
                ("network.host", _) => allowed.network_host = true,
                ("security.insecure", _) => allowed.insecure = true,
                ("ssh", _) => allowed.ssh = true,
                ("device", "") => allowed.every_device = true,
                ("device", _) => drop(allowed.devices.insert(value)),
                ("fs.read", _) => allowed.read.push(value),
                ("fs.write", _) => allowed.written.push(value),
                ("fs", _) => {
                    allowed.read.push(value.clone());
                    allowed.written.push(value);
                }
                // As Docker's bake, which checks no pushes.
                ("image" | "image.push" | "image.load", _) => {}
                (key, _) => return Err(Failure::new(format!("unknown entitlement key {key:?}"))),
            }
        }
        Ok(allowed)
    }

    /// Asks the user for what is missing, if there is a terminal.
    ///
    /// # Errors
    /// Returns an error if something is missing.
    pub fn check(&self, resolved: &Resolved, remote: Option<&Remote>, is_raw: bool) -> Outcome<()> {
        let directory = working_directory()?;
        let is_beside_remote = remote.is_some_and(Remote::has_files);
        let missing = self.missing(resolved, is_beside_remote, &directory)?;
        let mut checks_files = checks_files()?;
        if checks_files.is_none() && remote.is_some() {
            let allows = truth_of("BAKE_ALLOW_REMOTE_FS_ACCESS")?;
            checks_files = allows.map(|allows| !allows);
        }
        // Compose, which reads this form, has asked already.
        if is_raw {
            return Ok(());
        }
        missing.ask(&directory, checks_files)
    }

    /// Returns whether definitions may read a file that another one names.
    pub fn reads(&self, path: &str) -> Outcome<bool> {
        if checks_files()? == Some(false) {
            return Ok(true);
        }
        let paths = [path.to_owned()].into();
        Ok(outside(paths, self.read.iter(), &working_directory()?)?.is_empty())
    }

    fn missing(
        &self,
        resolved: &Resolved,
        is_beside_remote: bool,
        directory: &Path,
    ) -> Outcome<Missing> {
        let Granted {
            read,
            written,
            network_host,
            insecure,
        } = &resolved.granted;
        let mut missing = Missing::default();
        let (mut reads, mut writes) = (BTreeSet::new(), BTreeSet::new());
        for target in resolved.targets.values() {
            for right in target.entitlements.iter().flatten() {
                let (key, device) = right.split_once('=').unwrap_or((right, ""));
                match key {
                    "network.host" => missing.network_host |= !self.network_host && !network_host,
                    "security.insecure" => missing.insecure |= !self.insecure && !insecure,
                    "device" if !self.every_device && !self.devices.contains(device) => {
                        missing.devices.insert(device.to_owned());
                    }
                    _ => {}
                }
            }
            let agents = target.ssh.iter().flatten();
            let has_agent =
                target.has_git_ssh || agents.clone().any(|agent| agent.paths.is_empty());
            missing.ssh |= !self.ssh && has_agent;
            read_by(target, is_beside_remote, &mut reads);
            written_by(target, &mut writes);
        }
        let (read, written) = (
            read.iter().chain(&self.read),
            written.iter().chain(&self.written),
        );
        missing.read = outside(reads, read, directory)?;
        missing.written = outside(writes, written, directory)?;
        Ok(missing)
    }
}

fn working_directory() -> Outcome<PathBuf> {
    let directory = std::env::current_dir().and_then(|directory| directory.canonicalize());
    directory.map_err(|error| {
        let cause = plain(&error);
        Failure::new(format!("failed to get current working directory: {cause}"))
    })
}

/// Returns whether the access to files is checked, if the user says so.
fn checks_files() -> Outcome<Option<bool>> {
    truth_of("BUILDX_BAKE_ENTITLEMENTS_FS")
}

/// Returns the value of a variable, if it is set.
fn truth_of(name: &str) -> Outcome<Option<bool>> {
    let Ok(text) = std::env::var(name) else {
        return Ok(None);
    };
    match whelk_text::parse_bool(&text) {
        Some(value) => Ok(Some(value)),
        None => Err(Failure::new(format!(
            "failed to parse {name} value {text:?}"
        ))),
    }
}

fn local<'a>(caches: &'a Option<Vec<Cache>>, key: &'a str) -> impl Iterator<Item = String> + 'a {
    let caches = caches.iter().flatten();
    let caches = caches.filter(|cache| cache.0.kind() == "local");
    caches.filter_map(move |cache| cache.0.0.get(key).cloned())
}

/// Adds the paths that a target reads. `is_beside_remote` tells that those of contexts are of a server.
fn read_by(target: &Target, is_beside_remote: bool, paths: &mut BTreeSet<String>) {
    let context = target::context(target);
    let is_fetched = target.is_remote || is_fetched(&context);
    if !is_fetched {
        paths.insert(context);
    }
    let dockerfile = target::dockerfile(target);
    // One that is not in what is fetched has a full path.
    let is_local = !is_fetched || dockerfile.starts_with('/');
    if is_local && target.dockerfile_inline.is_none() {
        paths.insert(dockerfile);
    }
    let contexts = target.contexts.values();
    paths.extend(contexts.filter_map(|value| target::local_context(value, is_beside_remote)));
    let layouts = target
        .contexts
        .values()
        .filter_map(|value| target::layout(value));
    paths.extend(layouts.map(str::to_owned));
    paths.extend(local(&target.cache_from, "src"));
    for secret in target.secrets.iter().flatten() {
        // As `build` reads it: without a source, the id is a variable or else a file.
        let is_file = secret.env.is_empty() && std::env::var_os(&secret.id).is_none();
        let file = match secret.file.as_str() {
            "" if is_file => &secret.id,
            _ => &secret.file,
        };
        if !file.is_empty() {
            paths.insert(file.clone());
        }
    }
    let agents = target.ssh.iter().flatten();
    paths.extend(agents.flat_map(|agent| agent.paths.iter().cloned()));
}

/// Adds the paths that a target writes.
fn written_by(target: &Target, paths: &mut BTreeSet<String>) {
    let outputs = target.outputs.iter().flatten();
    let destinations = outputs.filter_map(|output| output.destination());
    paths.extend(destinations.filter(|path| *path != "-").map(str::to_owned));
    paths.extend(local(&target.cache_to, "dest"));
}

/// The maximum number of links in a path; the kernel's is 40.
const MAX_LINKS: usize = 255;

/// Returns the path that the kernel finds for a path: each part follows the links of those before it. What is not there yet is
/// without links.
fn existing(path: &str, directory: &Path) -> Outcome<PathBuf> {
    let failed = |cause: &str| Failure::new(format!("failed to evaluate path {path:?}: {cause}"));
    let parts = |path: &Path| -> Vec<PathBuf> {
        let parts = path.components().rev();
        parts.map(|part| PathBuf::from(part.as_os_str())).collect()
    };
    // The next part is the last one.
    let mut open = parts(&directory.join(path));
    let mut found = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = open.pop() {
        match part.components().next() {
            Some(Component::RootDir) => found = PathBuf::from("/"),
            Some(Component::ParentDir) => drop(found.pop()),
            Some(Component::Normal(name)) => {
                let next = found.join(name);
                match std::fs::read_link(&next) {
                    Ok(target) => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(failed("too many links"));
                        }
                        open.extend(parts(&target));
                    }
                    // It is no link, or not there.
                    Err(error)
                        if matches!(
                            error.kind(),
                            ErrorKind::InvalidInput
                                | ErrorKind::NotFound
                                | ErrorKind::NotADirectory
                        ) =>
                    {
                        found = next;
                    }
                    Err(error) => return Err(failed(&plain(&error))),
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Returns the paths that are below none of the allowed ones and not below the working directory.
fn outside<'a>(
    paths: BTreeSet<String>,
    allowed: impl Iterator<Item = &'a String>,
    directory: &Path,
) -> Outcome<BTreeSet<PathBuf>> {
    let mut roots = vec![directory.to_owned()];
    for path in allowed {
        if path == "*" {
            return Ok(BTreeSet::new());
        }
        roots.push(existing(path, directory)?);
    }
    let paths = paths.iter().map(|path| existing(path, directory));
    let mut found = paths.collect::<Outcome<BTreeSet<_>>>()?;
    found.retain(|path| !roots.iter().any(|root| path.starts_with(root)));
    // A directory stands for what is in it, which follows it in the order of paths.
    let mut last: Option<PathBuf> = None;
    found.retain(|path| {
        let is_below = last.as_ref().is_some_and(|last| path.starts_with(last));
        if !is_below {
            last = Some(path.clone());
        }
        !is_below
    });
    Ok(found)
}

/// Returns a path as it is shown: relative, if that needs no more than one `..`.
fn shown(path: &Path, directory: &Path) -> String {
    if let Ok(below) = path.strip_prefix(directory) {
        return match below.as_os_str().is_empty() {
            true => ".".into(),
            false => below.display().to_string(),
        };
    }
    if let Some(parent) = directory.parent()
        && parent != Path::new("/")
        && let Ok(below) = path.strip_prefix(parent)
    {
        return match below.as_os_str().is_empty() {
            true => "..".into(),
            false => Path::new("..").join(below).display().to_string(),
        };
    }
    path.display().to_string()
}

/// Whether a character makes a terminal show something else than what a text says: definitions may come from a server.
fn misleads(letter: char) -> bool {
    let changes_direction = matches!(letter, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    letter.is_control() || changes_direction
}

/// Returns a text with escapes instead of characters that mislead.
fn visible(text: &str) -> String {
    let mut shown = String::new();
    for letter in text.chars() {
        match misleads(letter) {
            true => shown.extend(letter.escape_default()),
            false => shown.push(letter),
        }
    }
    shown
}

/// Returns a word as it is written for a shell: quoted, if it needs that.
fn for_shell(word: &str) -> String {
    let is_plain = |letter: char| letter.is_alphanumeric() || "/._-=:@%+,".contains(letter);
    match word.chars().all(is_plain) {
        true => word.to_owned(),
        false => quoted(word),
    }
}

/// Returns a text that proposes flags: by themselves, and as part of the command of these words.
fn proposal<'a>(
    flags: impl Iterator<Item = &'a str> + Clone,
    is_terminal: bool,
    words: &[String],
) -> String {
    let allow: Vec<String> = flags
        .clone()
        .map(|flag| format!("--allow={flag}"))
        .collect();
    let allow = allow.join(" ");
    let mut text = match is_terminal {
        true => format!(
            "\nIn order to not see this message in the future pass {allow:?} to grant requested privileges.\n"
        ),
        false => format!("\nPass {allow:?} to grant requested privileges.\n"),
    };
    if let Some(at) = words.iter().position(|word| word == "bake") {
        let (before, after) = words.split_at(at + 1);
        // The command is for a shell, and definitions say what the flags are.
        let allow: Vec<String> = flags
            .map(|flag| format!("--allow={}", for_shell(flag)))
            .collect();
        text += &format!(
            "\nYour full command with requested privileges:\n\n{} {} {}\n\n",
            before.join(" "),
            allow.join(" "),
            after.join(" ")
        );
    }
    text
}

impl Missing {
    /// Returns the lines for users, and the flags that would allow it: first those for processes, then those for files.
    fn told(&self, directory: &Path) -> [Vec<(String, String)>; 2] {
        let mut rights = Vec::new();
        if self.network_host {
            let text = " - Running build containers that can access host network";
            rights.push((text.to_owned(), "network.host".to_owned()));
        }
        if self.insecure {
            let text = " - Running privileged containers that can make system changes";
            rights.push((text.to_owned(), "security.insecure".to_owned()));
        }
        for device in &self.devices {
            rights.push(match device.as_str() {
                "" => (" - Access to CDI devices".into(), "device".into()),
                device => (
                    format!(" - Access to device {}", visible(device)),
                    format!("device={device}"),
                ),
            });
        }
        let mut files = Vec::new();
        if self.ssh {
            let text = " - Forwarding default SSH agent socket";
            files.push((text.to_owned(), "ssh".to_owned()));
        }
        let mut paths: BTreeMap<&PathBuf, (&str, &str)> = BTreeMap::new();
        for path in &self.read {
            paths.insert(path, ("Read", "fs.read"));
        }
        for path in &self.written {
            let both = self.read.contains(path);
            paths.insert(
                path,
                match both {
                    true => ("Read and write", "fs"),
                    false => ("Write", "fs.write"),
                },
            );
        }
        for kind in ["fs", "fs.read", "fs.write"] {
            for (path, (verb, flag)) in paths.iter().filter(|(_, (_, flag))| *flag == kind) {
                let path = shown(path, directory);
                files.push((
                    format!(" - {verb} access to path {}", visible(&path)),
                    format!("{flag}={path}"),
                ));
            }
        }
        [rights, files]
    }

    /// Returns what the user of a command is told; `None` if nothing is missing.
    fn request(
        &self,
        directory: &Path,
        checks_files: Option<bool>,
        is_terminal: bool,
        words: &[String],
    ) -> Option<String> {
        let [rights, files] = self.told(directory);
        if rights.is_empty() && (files.is_empty() || checks_files == Some(false)) {
            return None;
        }
        let all = || rights.iter().chain(&files);
        let mut text =
            "Your build is requesting privileges for following possibly insecure capabilities:\n\n"
                .to_owned();
        for (line, _) in all() {
            text += &format!("{line}\n");
        }
        // Flags that cannot be shown as they are cannot be copied either.
        if !all().any(|(_, flag)| flag.contains(misleads)) {
            text += &proposal(all().map(|(_, flag)| flag.as_str()), is_terminal, words);
        }
        if checks_files.is_none() && !files.is_empty() {
            text += "To disable filesystem entitlements checks, you can set BUILDX_BAKE_ENTITLEMENTS_FS=0 .\n\n";
        }
        Some(text)
    }

    fn ask(&self, directory: &Path, checks_files: Option<bool>) -> Outcome<()> {
        let is_terminal = terminal::stdin_is_terminal();
        let words: Vec<String> = std::env::args().collect();
        let Some(text) = self.request(directory, checks_files, is_terminal, &words) else {
            return Ok(());
        };
        warn(&text);
        if is_terminal {
            warn("Do you want to grant requested privileges and continue? [y/N] ");
            let mut answer = String::new();
            let read = std::io::stdin().lock().read_line(&mut answer);
            if read.is_ok() && answer.trim().eq_ignore_ascii_case("y") {
                return Ok(());
            }
        }
        Err(Failure {
            hint: false,
            ..Failure::new("ERROR: additional privileges requested")
        })
    }
}

#[cfg(test)]
mod tests {
    use whelk_sys::Scratch;

    use super::*;

    #[test]
    fn a_directory_stands_for_what_is_in_it() {
        let paths = ["a/b", "a", "a-b", "a/b/c", "c/d"];
        let paths = paths.map(|path| format!("/nowhere/{path}")).into();
        let found = outside(paths, std::iter::empty(), Path::new("/elsewhere")).unwrap();
        let expected = ["/nowhere/a", "/nowhere/a-b", "/nowhere/c/d"];
        assert!(found.iter().eq(expected.map(Path::new)), "{found:?}");
    }

    #[test]
    fn what_is_outside_is_asked_for() {
        let scratch = Scratch::temporary("entitlements").unwrap();
        let root = scratch.path().canonicalize().unwrap();
        let directory = root.join("own");
        for name in ["own/sub", "other"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        std::os::unix::fs::symlink(root.join("other"), directory.join("link")).unwrap();
        let target = Target {
            context: Some("link".into()),
            dockerfile_inline: Some("FROM x".into()),
            entitlements: Some(vec!["network.host".into()]),
            outputs: Some(vec![whelk_bake::Output(whelk_bake::Entry(
                [("type", "local"), ("dest", "../other/new")]
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
            ))]),
            ..Target::default()
        };
        let mut resolved = Resolved::default();
        resolved.targets.insert("app".into(), target);
        let missing = Allowed::default()
            .missing(&resolved, false, &directory)
            .unwrap();
        let [rights, files] = missing.told(&directory);
        let flags = |list: Vec<(String, String)>| {
            let flags = list.into_iter().map(|(_, flag)| flag);
            flags.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(flags(rights), "network.host");
        assert_eq!(flags(files), "fs.read=../other fs.write=../other/new");
        let allowed = ["network.host", "fs=../other"].map(str::to_owned);
        let allowed = Allowed::parse(&allowed).unwrap();
        assert_eq!(
            allowed.missing(&resolved, false, &directory).unwrap(),
            Missing::default()
        );
        assert!(Allowed::parse(&["x".to_owned()]).is_err());
        // Definitions on a server may name a Dockerfile here.
        let mut read = BTreeSet::new();
        let beside = |file: &str| Target {
            context: Some("sub".into()),
            dockerfile: Some(file.into()),
            is_remote: true,
            ..Target::default()
        };
        read_by(&beside("/etc/passwd"), true, &mut read);
        assert!(read.is_empty(), "{read:?}");
        read_by(&beside("cwd://../etc/passwd"), true, &mut read);
        assert_eq!(read.len(), 1);
    }

    #[test]
    fn definitions_cannot_change_the_question() {
        let asked = |path: &str, device: &str| {
            let missing = Missing {
                devices: [device.to_owned()].into(),
                written: [PathBuf::from(path)].into(),
                ..Missing::default()
            };
            let words = ["whelk", "bake", "app"].map(str::to_owned);
            let text = missing.request(Path::new("/own/dir"), None, true, &words);
            text.unwrap()
        };
        let text = asked("/root/x\u{1b}[2J\n - Read access to path y", "a\u{202e}b");
        assert!(
            text.contains(
                " - Access to device a\\u{202e}b\n - Write access to path /root/x\\u{1b}[2J\\n - Read"
            ),
            "{text}"
        );
        assert!(!text.contains("--allow"), "{text}");
        let text = asked("/root/x; y", "d");
        for part in [
            "pass \"--allow=device=d --allow=fs.write=/root/x; y\" to grant",
            "\nwhelk bake --allow=device=d --allow='fs.write=/root/x; y' app\n",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let nothing = Missing::default().request(Path::new("/"), None, true, &[]);
        assert_eq!(nothing, None);
    }

    #[test]
    fn paths_are_those_that_the_kernel_finds() {
        let scratch = Scratch::temporary("paths").unwrap();
        let root = scratch.path().canonicalize().unwrap();
        for name in ["own", "other/.ssh"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        let own = root.join("own");
        let link = |to: &Path, name: &str| std::os::unix::fs::symlink(to, own.join(name)).unwrap();
        link(&root.join("other/.ssh"), "link");
        link(Path::new("../missing/file"), "dangling");
        link(Path::new("loop"), "loop");
        for (path, expected) in [
            ("link/../id", "other/id"),
            ("link/id", "other/.ssh/id"),
            ("dangling", "missing/file"),
            ("./new/../x", "own/x"),
            ("../own/link", "other/.ssh"),
        ] {
            assert_eq!(existing(path, &own).unwrap(), root.join(expected), "{path}");
        }
        assert!(existing("loop", &own).is_err());
    }

    #[test]
    fn all_that_a_target_reads_is_known() {
        let secret = |id: &str| whelk_bake::Secret {
            id: id.into(),
            ..whelk_bake::Secret::default()
        };
        let target = Target {
            // Such a directory is not there, so it is a repository.
            context: Some("github.com/a/b".into()),
            secrets: Some(vec![secret("/home/u/.ssh/id"), secret("PATH")]),
            contexts: [("l".to_owned(), "oci-layout:///layout:tag".to_owned())].into(),
            ..Target::default()
        };
        let mut paths = BTreeSet::new();
        read_by(&target, false, &mut paths);
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        assert_eq!(paths, ["/home/u/.ssh/id", "/layout"]);
        // A Dockerfile with a full path is not in what is fetched; that of a server's directory is.
        let mut target = Target {
            context: Some("https://example.com/x.git".into()),
            dockerfile: Some("/etc/shadow".into()),
            contexts: [("b".to_owned(), "/b".to_owned())].into(),
            ..Target::default()
        };
        let read = |target: &Target, is_beside_remote: bool| {
            let mut paths = BTreeSet::new();
            read_by(target, is_beside_remote, &mut paths);
            paths.into_iter().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(read(&target, false), "/b /etc/shadow");
        assert_eq!(read(&target, true), "/etc/shadow");
        target.context = Some("dir".into());
        target.is_remote = true;
        assert_eq!(read(&target, true), "");
    }
}
