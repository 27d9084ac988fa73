//! The texts of a classic build, in the order of the Dockerfile's lines, whatever the order of the steps.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;
use whelk_dockerfile::instruction::Instruction;
use whelk_dockerfile::lint::Linter;
use whelk_dockerfile::{Lines, Stage, Stages, Step};
use whelk_image::progress::Update;
use whelk_llb::Digest;
use whelk_llb::pb::op::Kind;
use whelk_sys::sync::IgnorePoison as _;

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

/// The instructions without operations, such as ENV, that were built, by the ids that were shown for them: what stands
/// before them counts, too. It is no part of the build cache, and ends with the engine.
#[derive(Debug, Default)]
pub(crate) struct Settled(Mutex<HashSet<String>>);

impl Settled {
    /// Number of instructions from which all are forgotten.
    const MOST: usize = 10_000;

    /// Adds an instruction. Returns whether it was there.
    fn add(&self, id: &str) -> bool {
        let mut ids = self.0.lock().ignore_poison();
        if ids.len() >= Self::MOST {
            ids.clear();
        }
        !ids.insert(id.to_owned())
    }

    pub(crate) fn clear(&self) {
        self.0.lock().ignore_poison().clear();
    }
}

/// An instruction, and the operations that it consists of.
#[derive(Debug)]
struct Line {
    code: String,
    nodes: Vec<usize>,
    /// Whether it begins a stage, or stands before the first one.
    is_from: bool,
    /// The number of triggers of the base image or stage, of a FROM.
    triggers: usize,
    /// The process that follows, if what the instruction sets is a part of its key.
    next: Option<usize>,
}

impl Line {
    /// Whether it is an instruction without operations, such as ENV.
    fn has_no_operations(&self) -> bool {
        self.nodes.is_empty() && !self.is_from
    }
}

/// The texts of a build: its instructions, and what is told at its end.
#[derive(Debug)]
pub(super) struct Script {
    lines: Vec<Line>,
    /// Build arguments that no ARG names.
    unused: Vec<String>,
    quiet: bool,
    remove: bool,
    no_cache: bool,
    build_args: BTreeMap<String, Option<String>>,
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
            is_from: true,
            triggers: 0,
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
            let steps = steps.map(|step| {
                let is_setting = is_setting(&step.instruction);
                (&step.code, step.lines, false, is_setting)
            });
            let all = std::iter::once((&stage.code, stage.lines, true, false)).chain(steps);
            let mut next = None;
            let mut steps: Vec<Line> = Vec::new();
            for (code, lines, is_from, is_setting) in all.collect::<Vec<_>>().into_iter().rev() {
                let nodes = nodes_of(lines);
                let is_process =
                    |index: &usize| matches!(job.graph.nodes[*index].op.kind, Some(Kind::Exec(_)));
                next = nodes.iter().copied().find(is_process).or(next);
                steps.push(Line {
                    code: code.trim().to_owned(),
                    is_from,
                    triggers: match is_from {
                        true => triggers(&stages.stages[..=number], job, &nodes),
                        false => 0,
                    },
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
            no_cache: request.no_cache,
            build_args: request.build_args.clone(),
        })
    }

    /// Sends the texts, each when it is its turn, until the build has ended or nobody listens.
    pub async fn tell(self, job: &Arc<Job>, settled: &Settled, messages: &mpsc::Sender<Message>) {
        let mut id = String::new();
        if self.quiet {
            for line in &self.lines {
                id = self.next_id(job, line, &id);
                if line.has_no_operations() {
                    settled.add(&id);
                }
            }
            return;
        }
        let count = self.lines.len();
        // Whether anything of the stage was executed.
        let mut is_new = false;
        for (number, line) in self.lines.iter().enumerate() {
            let mut head = format!("Step {}/{count} : {}\n", number + 1, line.code);
            if line.triggers > 0 {
                let plural = if line.triggers == 1 { "" } else { "s" };
                let triggers = format!("# Executing {} build trigger{plural}\n", line.triggers);
                head.push_str(&triggers);
            }
            if send(messages, head).await.is_err() {
                return;
            }
            if line.is_from && !line.nodes.is_empty() {
                is_new = false;
            }
            id = self.next_id(job, line, &id);
            if line.has_no_operations() && settled.add(&id) && !is_new && !self.no_cache {
                if send(messages, " ---> Using cache\n".into()).await.is_err() {
                    return;
                }
            } else {
                match self.follow(line, job, messages).await {
                    Ok(Followed::Cached) => {}
                    Ok(Followed::Executed) => is_new = true,
                    Ok(Followed::Ended) | Err(_) => return,
                }
            }
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

    /// Follows the operations of an instruction.
    async fn follow(
        &self,
        line: &Line,
        job: &Arc<Job>,
        messages: &mpsc::Sender<Message>,
    ) -> Result<Followed> {
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
            return Ok(Followed::Cached);
        }
        let mut is_cached = !line.nodes.is_empty();
        let mut followed = Followed::Cached;
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
                State::Failed(_) | State::Left | State::Waiting => return Ok(Followed::Ended),
                State::Running(Some(log)) => {
                    send(messages, format!(" ---> Running in {container}\n")).await?;
                    let mut left = job.states[index].subscribe();
                    let left = left.wait_for(|state| matches!(state, State::Left));
                    tokio::select! {
                        written = output(&log, messages) => written?,
                        // Another build may wait for the step, which goes on then.
                        _ = left => return Ok(Followed::Ended),
                    }
                }
                State::Running(_) | State::Done => {}
            }
            is_cached = false;
            followed = Followed::Executed;
            let ended = state
                .wait_for(|state| !matches!(state, State::Running(_)))
                .await
                .is_ok_and(|state| matches!(*state, State::Done));
            if !ended {
                return Ok(Followed::Ended);
            }
            if is_process && self.remove {
                let text = format!(" ---> Removed intermediate container {container}\n");
                send(messages, text).await?;
            }
        }
        if is_cached {
            send(messages, " ---> Using cache\n".into()).await?;
        }
        Ok(followed)
    }

    /// Returns what is shown as the id of an instruction's result: a base image's id, or digits of a key.
    fn next_id(&self, job: &Job, line: &Line, before: &str) -> String {
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
            let args = format!("{:?}", self.build_args);
            let parts = [before.as_bytes(), line.code.as_bytes(), args.as_bytes()];
            return short(&Digest::of_parts(parts).to_string());
        };
        match job.sources.image(&job.graph.nodes[last]) {
            Some(image) => short(image.id.as_str()),
            None => short(&job.keys[last].key.to_string()),
        }
    }
}

/// What has become of the operations of an instruction.
enum Followed {
    /// None of them was executed.
    Cached,
    Executed,
    /// One has failed, or the build has ended.
    Ended,
}

/// Returns the number of triggers of the base of the last one of these stages, whose FROM has these operations.
fn triggers(stages: &[Stage], job: &Job, nodes: &[usize]) -> usize {
    let Some((stage, earlier)) = stages.split_last() else {
        return 0;
    };
    let mut earlier = earlier.iter().rev();
    if let Some(base) = earlier.find(|base| base.name.eq_ignore_ascii_case(&stage.base)) {
        let steps = base.steps.iter();
        let is_trigger = |step: &&Step| matches!(step.instruction, Instruction::Onbuild(_));
        return steps.filter(is_trigger).count();
    }
    let images = nodes.iter();
    let mut images = images.filter_map(|index| job.sources.image(&job.graph.nodes[*index]));
    images
        .next()
        .map_or(0, |image| image.config.config.on_build.len())
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
