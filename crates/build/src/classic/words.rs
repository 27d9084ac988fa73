//! The texts of a classic build, in the order of the Dockerfile's lines, whatever the order of the steps.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::mpsc;
use whelk_dockerfile::instruction::Instruction;
use whelk_dockerfile::lint::Linter;
use whelk_dockerfile::{Lines, Stages};
use whelk_image::progress::Update;
use whelk_llb::Digest;
use whelk_llb::pb::op::Kind;

use super::Request;
use crate::error::{Error, Result};
use crate::log::{Frames, Log};
use crate::solver::{Job, State};

/// What a client is told.
#[derive(Clone, Debug)]
pub enum Message {
    Text(String),
    /// The progress of the pull of a base image.
    Pull(Update),
}

/// An instruction, and the operations that it consists of.
#[derive(Debug)]
struct Line {
    code: String,
    nodes: Vec<usize>,
    /// The process that follows, if what the instruction sets is a part of its key.
    next: Option<usize>,
}

/// The texts of a build: its instructions, and what is told at its end.
#[derive(Debug)]
pub(super) struct Script {
    lines: Vec<Line>,
    /// Build arguments that no ARG names.
    unused: Vec<String>,
    quiet: bool,
    remove: bool,
}

/// The number of digits of an id that are shown.
const SHORT: usize = 12;

/// Returns the first digits of a digest.
fn short(digest: &str) -> String {
    let digits = digest.split_once(':').map_or(digest, |(_, digits)| digits);
    digits.chars().take(SHORT).collect()
}

impl Script {
    pub fn new(text: &str, request: &Request, job: &Job) -> Result<Self> {
        let dockerfile = whelk_dockerfile::parse(text)?;
        let stages = Stages::parse(&dockerfile, &mut Linter::default())?;
        let places = places(job);
        let nodes_of = |lines: Lines| {
            let found = lines.iter().filter_map(|line| places.get(&line));
            let mut nodes: Vec<usize> = found.flatten().copied().collect();
            nodes.sort_unstable();
            nodes.dedup();
            nodes
        };
        // They are in the order of the file.
        let mut rest = dockerfile.lines.iter();
        let mut original = |lines: Lines| {
            let found = rest.find(|line| line.lines == lines);
            found.map_or_else(String::new, |line| line.original.trim().to_owned())
        };
        let globals = stages.args.iter().map(|global| Line {
            code: original(global.lines),
            nodes: Vec::new(),
            next: None,
        });
        let mut lines: Vec<Line> = globals.collect();
        let target = stages.stages.iter().position(|stage| {
            !request.target.is_empty() && stage.name.eq_ignore_ascii_case(&request.target)
        });
        let number = request.target.parse().ok();
        let number = number.filter(|number| *number < stages.stages.len());
        let target = target.or(number);
        let last = target.unwrap_or(stages.stages.len().saturating_sub(1));
        for (number, stage) in stages.stages.iter().enumerate().take(last + 1) {
            let steps = stage.steps.iter();
            let steps = steps.map(|step| (&step.code, step.lines, is_setting(&step.instruction)));
            let all = std::iter::once((&stage.code, stage.lines, false)).chain(steps);
            let mut next = None;
            let mut steps: Vec<Line> = Vec::new();
            for (code, lines, is_setting) in all.collect::<Vec<_>>().into_iter().rev() {
                let nodes = nodes_of(lines);
                let is_process =
                    |index: &usize| matches!(job.graph.nodes[*index].op.kind, Some(Kind::Exec(_)));
                next = nodes.iter().copied().find(is_process).or(next);
                steps.push(Line {
                    code: code.trim().to_owned(),
                    next: next.filter(|_| is_setting && nodes.is_empty()),
                    nodes,
                });
            }
            steps.reverse();
            // A stage that nothing needs is not built.
            if number == last || steps.iter().any(|line| !line.nodes.is_empty()) {
                lines.extend(steps);
            }
        }
        Ok(Self {
            lines,
            unused: unused(&stages, request),
            quiet: request.quiet,
            remove: request.remove,
        })
    }

    /// Sends the texts, each when it is its turn, until the build has ended or nobody listens.
    pub async fn tell(self, job: &Arc<Job>, messages: &mpsc::Sender<Message>) {
        if self.quiet {
            return;
        }
        let count = self.lines.len();
        let mut id = String::new();
        for (number, line) in self.lines.iter().enumerate() {
            let head = format!("Step {}/{count} : {}\n", number + 1, line.code);
            if send(messages, head).await.is_err() {
                return;
            }
            match self.follow(line, job, messages).await {
                Ok(true) => {}
                Ok(false) | Err(_) => return,
            }
            id = next_id(job, line, &id);
            if send(messages, format!(" ---> {id}\n")).await.is_err() {
                return;
            }
        }
        if !self.unused.is_empty() {
            let names = self.unused.join(" ");
            let text = format!("[Warning] One or more build-args [{names}] were not consumed\n");
            let _ = send(messages, text).await;
        }
    }

    /// Follows the operations of an instruction. Returns whether they have succeeded.
    async fn follow(
        &self,
        line: &Line,
        job: &Arc<Job>,
        messages: &mpsc::Sender<Message>,
    ) -> Result<bool> {
        if let Some(next) = line.next {
            // The setting is a part of the process's key: if that is cached, it is the same as before.
            let mut state = job.states[next].subscribe();
            let begun = state.wait_for(|state| !matches!(state, State::Waiting));
            if begun
                .await
                .is_ok_and(|state| matches!(*state, State::Cached))
            {
                send(messages, " ---> Using cache\n".into()).await?;
            }
            return Ok(true);
        }
        let mut is_cached = !line.nodes.is_empty();
        for &index in &line.nodes {
            let kind = &job.graph.nodes[index].op.kind;
            if matches!(kind, Some(Kind::Source(_))) {
                is_cached = false;
                continue;
            }
            let is_process = matches!(kind, Some(Kind::Exec(_)));
            let container = short(&job.keys[index].key.to_string());
            let mut state = job.states[index].subscribe();
            let begun = state
                .wait_for(|state| !matches!(state, State::Waiting))
                .await
                .map(|state| state.clone())
                .unwrap_or_default();
            match begun {
                State::Cached => continue,
                State::Failed(_) | State::Left | State::Waiting => return Ok(false),
                State::Running(Some(log)) => {
                    send(messages, format!(" ---> Running in {container}\n")).await?;
                    let mut left = job.states[index].subscribe();
                    let left = left.wait_for(|state| matches!(state, State::Left));
                    tokio::select! {
                        written = output(&log, messages) => written?,
                        // Another build may wait for the step, which goes on then.
                        _ = left => return Ok(false),
                    }
                }
                State::Running(_) | State::Done => {}
            }
            is_cached = false;
            let ended = state
                .wait_for(|state| !matches!(state, State::Running(_)))
                .await
                .is_ok_and(|state| matches!(*state, State::Done));
            if !ended {
                return Ok(false);
            }
            if is_process && self.remove {
                let text = format!(" ---> Removed intermediate container {container}\n");
                send(messages, text).await?;
            }
        }
        if is_cached {
            send(messages, " ---> Using cache\n".into()).await?;
        }
        Ok(true)
    }
}

/// Returns whether an instruction sets what following processes are executed with.
fn is_setting(instruction: &Instruction) -> bool {
    matches!(
        instruction,
        Instruction::Env(_) | Instruction::Arg(_) | Instruction::User(_) | Instruction::Shell(_)
    )
}

/// Returns the build arguments that no ARG names, apart from those that each RUN has.
fn unused(stages: &Stages, request: &Request) -> Vec<String> {
    const KNOWN: [&str; 6] = [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "FTP_PROXY",
        "NO_PROXY",
        "ALL_PROXY",
        "SOURCE_DATE_EPOCH",
    ];
    let of_stages = stages.stages.iter().flat_map(|stage| &stage.steps);
    let of_stages = of_stages.filter_map(|step| match &step.instruction {
        Instruction::Arg(args) => Some(args),
        _ => None,
    });
    let all = stages.args.iter().map(|global| &global.args);
    let declared: HashSet<&str> = all
        .chain(of_stages)
        .flatten()
        .map(|arg| arg.key.as_str())
        .collect();
    let names = request.build_args.keys().filter(|name| {
        let is_known = KNOWN.contains(&name.to_uppercase().as_str());
        !is_known && !name.starts_with("BUILDKIT_") && !declared.contains(name.as_str())
    });
    names.cloned().collect()
}

/// Returns the operations that begin at each line.
fn places(job: &Job) -> HashMap<u32, Vec<usize>> {
    let mut places: HashMap<u32, Vec<usize>> = HashMap::new();
    let Some(source) = &job.graph.source else {
        return places;
    };
    let needed = job.graph.needed();
    for (index, node) in job.graph.nodes.iter().enumerate() {
        let Some(found) = source
            .locations
            .get(&node.digest.to_string())
            .filter(|_| needed[index])
        else {
            continue;
        };
        let ranges = found.locations.iter().flat_map(|location| &location.ranges);
        for line in ranges.filter_map(|range| u32::try_from(range.start?.line).ok()) {
            let nodes = places.entry(line).or_default();
            if nodes.last() != Some(&index) {
                nodes.push(index);
            }
        }
    }
    places
}

async fn send(messages: &mpsc::Sender<Message>, text: String) -> Result<()> {
    let sent = messages.send(Message::Text(text)).await;
    sent.map_err(|_| Error::invalid("the client has left"))
}

/// Sends the output of a process as it comes.
async fn output(log: &Log, messages: &mpsc::Sender<Message>) -> Result<()> {
    let (mut at, mut frames) = (0, Frames::default());
    // The rest of a character that was cut, by stream.
    let mut rest: HashMap<u8, Vec<u8>> = HashMap::new();
    loop {
        let bytes = log.read(at).await?;
        if bytes.is_empty() {
            break;
        }
        at += bytes.len() as u64;
        for (stream, content) in frames.add(&bytes) {
            let held = rest.entry(stream).or_default();
            held.extend_from_slice(&content);
            let text = take_text(held);
            if !text.is_empty() {
                send(messages, coloured(stream, text)).await?;
            }
        }
    }
    for (stream, held) in rest.into_iter().filter(|(_, held)| !held.is_empty()) {
        let text = String::from_utf8_lossy(&held).into_owned();
        send(messages, coloured(stream, text)).await?;
    }
    Ok(())
}

/// Returns a text of a stream as Docker sends it: that of standard error is red.
fn coloured(stream: u8, text: String) -> String {
    match stream {
        2 => format!("\x1b[91m{text}\x1b[0m"),
        _ => text,
    }
}

/// Takes the whole characters from bytes. What is not UTF-8 is replaced.
fn take_text(bytes: &mut Vec<u8>) -> String {
    let (mut text, mut taken) = (String::new(), 0);
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let invalid = chunk.invalid();
        let is_last = taken + invalid.len() == bytes.len();
        let is_cut = std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
        if invalid.is_empty() || is_last && is_cut {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        taken += invalid.len();
    }
    bytes.drain(..taken);
    text
}

/// Returns what is shown as the id of an instruction's result: a base image's id, or digits of a key.
fn next_id(job: &Job, line: &Line, before: &str) -> String {
    let Some(&last) = line.nodes.last() else {
        // An instruction without operations, such as ENV.
        let mut words = line.code.split_whitespace();
        if words
            .next()
            .is_some_and(|word| word.eq_ignore_ascii_case("FROM"))
            && words.next().is_some_and(|name| name == "scratch")
        {
            return String::new();
        }
        let parts = [before.as_bytes(), line.code.as_bytes()];
        return short(&Digest::of_parts(parts).to_string());
    };
    match job.sources.image(&job.graph.nodes[last]) {
        Some(image) => short(image.id.as_str()),
        None => short(&job.keys[last].key.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_end_with_whole_characters() {
        let check = |pieces: &[&[u8]], expected: &[&str]| {
            let mut held = Vec::new();
            let mut texts = Vec::new();
            for piece in pieces {
                held.extend_from_slice(piece);
                texts.push(take_text(&mut held));
            }
            assert_eq!(texts, expected, "{pieces:?}");
        };
        check(&[b"ab", b"c"], &["ab", "c"]);
        check(&[b"\xc3", b"\xa4b"], &["", "äb"]);
        check(&[b"\xffa\xe2\x82", b"\xac"], &["\u{fffd}a", "€"]);
        check(&[b"\xe2\x82", b"x"], &["", "\u{fffd}x"]);
        check(&[b"a\xe2\x82b\xff"], &["a\u{fffd}b\u{fffd}"]);
    }
}
