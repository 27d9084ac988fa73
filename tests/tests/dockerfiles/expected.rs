//! What is recorded of cases: for each, who has observed which lines. What several have observed is there once.
//!
//! ```text
//! === NAME
//! @ WHO…          who has observed the lines that follow
//! @@ WHO          and what only this one has observed besides: the history of an image
//! ```

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::fs;
use std::path::Path;

use crate::Observation;
use crate::case::Protocol;

/// Which engine, with which protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    Docker(Protocol),
    Whelk(Protocol),
}

impl Who {
    fn parse(text: &str) -> Self {
        let all = Protocol::ALL.map(|one| [Self::Docker(one), Self::Whelk(one)]);
        let found = all
            .into_iter()
            .flatten()
            .find(|who| who.to_string() == text);
        found.unwrap_or_else(|| panic!("{text:?} has recorded nothing"))
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Docker(protocol) => write!(f, "docker-{protocol}"),
            Self::Whelk(protocol) => write!(f, "whelk-{protocol}"),
        }
    }
}

#[derive(Debug, Default)]
pub struct Expected(BTreeMap<String, BTreeMap<Who, Observation>>);

impl Expected {
    #[track_caller]
    pub fn read(directory: &Path) -> Self {
        let mut all = Self::default();
        for entry in fs::read_dir(directory).expect("list what is recorded") {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ext| ext == "expected") {
                let subject = path.file_stem().unwrap().to_str().unwrap();
                let text = fs::read_to_string(&path).expect("read what is recorded");
                all.parse(subject, &text);
            }
        }
        all
    }

    fn parse(&mut self, subject: &str, text: &str) {
        let mut name = String::new();
        let mut who: Vec<Who> = Vec::new();
        for line in text.lines() {
            if let Some(case) = line.strip_prefix("=== ") {
                name = format!("{subject}.{case}");
            } else if let Some(list) = line.strip_prefix("@ ") {
                who = list.split(' ').map(Who::parse).collect();
                for who in &who {
                    self.set(&name, *who, Vec::new());
                }
            } else if let Some(list) = line.strip_prefix("@@ ") {
                who = list.split(' ').map(Who::parse).collect();
            } else if let Some(line) = line.strip_prefix("  ") {
                let observed = self.0.get_mut(&name).expect("a case");
                for who in &who {
                    observed.get_mut(who).unwrap().push(line.to_owned());
                }
            }
        }
    }

    pub fn get(&self, name: &str, who: Who) -> Option<&Observation> {
        self.0.get(name)?.get(&who)
    }

    pub fn set(&mut self, name: &str, who: Who, observation: Observation) {
        let observed = self.0.entry(name.to_owned()).or_default();
        observed.insert(who, observation);
    }

    pub fn remove(&mut self, name: &str, who: Who) {
        if let Some(observed) = self.0.get_mut(name) {
            observed.remove(&who);
        }
    }

    #[track_caller]
    pub fn write(&self, directory: &Path) {
        let mut files: BTreeMap<&str, String> = BTreeMap::new();
        for (name, observed) in &self.0 {
            let (subject, case) = name.split_once('.').expect("SUBJECT.NAME");
            let text = files.entry(subject).or_default();
            writeln!(text, "=== {case}").unwrap();
            let split = observed.iter().map(|(who, lines)| {
                let is_history = |line: &String| line.starts_with("history ");
                let at = lines.iter().position(is_history).unwrap_or(lines.len());
                let (common, own) = lines.split_at(at);
                (who, common, own)
            });
            let mut rest: Vec<(&Who, &[String], &[String])> = split.collect();
            while let Some((_, lines, _)) = rest.first().copied() {
                let (same, others) = rest
                    .into_iter()
                    .partition::<Vec<_>, _>(|one| one.1 == lines);
                let who: Vec<String> = same.iter().map(|(who, ..)| who.to_string()).collect();
                write_lines(text, &format!("@ {}", who.join(" ")), lines);
                for (who, _, own) in same.iter().filter(|(.., own)| !own.is_empty()) {
                    write_lines(text, &format!("@@ {who}"), own);
                }
                rest = others;
            }
            text.push('\n');
        }
        for (subject, text) in files {
            let path = directory.join(format!("{subject}.expected"));
            fs::write(path, text).expect("write what was recorded");
        }
    }
}

fn write_lines(text: &mut String, head: &str, lines: &[String]) {
    writeln!(text, "{head}").unwrap();
    for line in lines {
        writeln!(text, "  {line}").unwrap();
    }
}
