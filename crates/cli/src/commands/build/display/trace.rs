//! What is known of a build's steps.

use std::collections::{HashMap, VecDeque};

use whelk_buildkit::pb::Timestamp;
use whelk_buildkit::pb::control::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use whelk_dockerfile::report::excerpt;

use super::super::failure::lines_of;
use super::terminal::printable;

/// Number of lines of a step's output that are kept, for the end of a build that fails.
const KEPT: usize = 2000;

/// Number of bytes of these lines.
const KEPT_BYTES: usize = 1 << 20;

/// Number of bytes of a line that are kept: the last ones, because programs that draw a bar write to its line again.
const LINE: usize = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct Trace {
    pub steps: Vec<Step>,
    by_digest: HashMap<String, usize>,
    warnings: Vec<VertexWarning>,
    /// The earliest time that is known.
    pub began: Option<f64>,
    /// How far the engine's clock is behind that of this machine, as far as the fastest news tell.
    behind: Option<f64>,
}

#[derive(Debug, Default)]
pub(super) struct Step {
    pub name: String,
    pub is_cached: bool,
    /// It has run, even if it was in the cache when it was asked for again.
    has_run: bool,
    pub error: String,
    /// In seconds.
    pub started: Option<f64>,
    pub completed: Option<f64>,
    /// The time of earlier runs: some steps begin several times.
    before: f64,
    pub parts: Vec<Part>,
    /// Output that was not printed yet.
    pub output: Vec<u8>,
    /// The last lines, and one that is not complete.
    lines: VecDeque<String>,
    kept_bytes: usize,
    line: Vec<u8>,
    left_out: usize,
    /// Why it was not taken from the cache.
    reason: String,
    /// The number by which it is shown, when it was.
    pub number: Option<usize>,
    /// When its news have begun to wait.
    pub waits: Option<std::time::Instant>,
    /// Whether its end was shown.
    pub is_told: bool,
}

/// A part of a step, such as a layer that is pulled.
#[derive(Debug)]
pub(super) struct Part {
    pub name: String,
    pub current: i64,
    pub total: i64,
    pub started: Option<f64>,
    pub seen: f64,
    pub completed: Option<f64>,
    /// Whether there is news.
    pub is_new: bool,
}

/// How a step's part begins that says why it was not cached.
pub(super) const REASON: &str = "not cached: ";

pub(super) fn seconds(time: Timestamp) -> f64 {
    #[allow(
        clippy::cast_precision_loss,
        reason = "microseconds are exact for centuries"
    )]
    let seconds = time.seconds as f64;
    seconds + f64::from(time.nanos) / 1e9
}

fn own_time() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0.0, |now| now.as_secs_f64())
}

impl Trace {
    /// Returns the time of the engine's clock.
    pub fn now(&self) -> f64 {
        own_time() - self.behind.unwrap_or(0.0)
    }

    /// Compares the clocks.
    fn compare(&mut self, response: &StatusResponse, own: f64) {
        let vertexes = response.vertexes.iter();
        let vertexes = vertexes.flat_map(|vertex| [vertex.started, vertex.completed]);
        let statuses = response.statuses.iter().map(|status| status.timestamp);
        let logs = response.logs.iter().map(|log| log.timestamp);
        let times = vertexes.chain(statuses).chain(logs).flatten().map(seconds);
        if let Some(newest) = times.reduce(f64::max) {
            let behind = own - newest;
            self.behind = Some(self.behind.map_or(behind, |known| known.min(behind)));
        }
    }

    /// Takes news; returns the steps that they are about.
    pub fn update(&mut self, response: &StatusResponse) -> Vec<usize> {
        self.compare(response, own_time());
        let mut updated = Vec::new();
        for vertex in &response.vertexes {
            updated.push(self.vertex(vertex));
        }
        for status in &response.statuses {
            updated.extend(self.status(status));
        }
        for log in &response.logs {
            updated.extend(self.log(log));
        }
        self.warnings.extend(response.warnings.iter().cloned());
        updated.sort_unstable();
        updated.dedup();
        updated
    }

    /// Forgets output that nobody is going to print.
    pub fn forget_output(&mut self, updated: &[usize]) {
        for &index in updated {
            self.steps[index].output = Vec::new();
        }
    }

    fn vertex(&mut self, vertex: &Vertex) -> usize {
        let next = self.steps.len();
        let index = *self.by_digest.entry(vertex.digest.clone()).or_insert(next);
        if index == next {
            self.steps.push(Step::default());
        }
        let step = &mut self.steps[index];
        step.name.clone_from(&vertex.name);
        let started = vertex.started.map(seconds);
        if let (Some(old), Some(end), Some(new)) = (step.started, step.completed, started)
            && new > old
        {
            step.before += (end - old).max(0.0);
        }
        step.started = started;
        step.completed = vertex.completed.map(seconds);
        step.is_cached = vertex.cached;
        step.has_run |= vertex.completed.is_some() && !vertex.cached;
        step.error.clone_from(&vertex.error);
        if let Some(started) = started {
            self.began = Some(self.began.map_or(started, |began| began.min(started)));
        }
        index
    }

    fn status(&mut self, status: &VertexStatus) -> Option<usize> {
        let index = *self.by_digest.get(&status.vertex)?;
        let step = &mut self.steps[index];
        if let Some(reason) = status.id.strip_prefix(REASON) {
            reason.clone_into(&mut step.reason);
        }
        let part = Part {
            name: status.id.clone(),
            current: status.current,
            total: status.total,
            started: status.started.map(seconds),
            seen: status.timestamp.map(seconds).unwrap_or_default(),
            completed: status.completed.map(seconds),
            is_new: true,
        };
        match step.parts.iter_mut().find(|other| other.name == part.name) {
            Some(other) => *other = part,
            None => step.parts.push(part),
        }
        Some(index)
    }

    fn log(&mut self, log: &VertexLog) -> Option<usize> {
        let index = *self.by_digest.get(&log.vertex)?;
        let time = log.timestamp.map(seconds).unwrap_or_default();
        self.steps[index].add_output(time, &log.msg);
        Some(index)
    }

    /// Returns the number of steps that are done, and that are known.
    pub fn counts(&self) -> (usize, usize) {
        let done = self.steps.iter().filter(|step| step.completed.is_some());
        (done.count(), self.steps.len())
    }

    /// Returns the list of warnings; with all that is known of them if `details`.
    pub fn warnings(&self, details: bool) -> String {
        let count = self.warnings.len();
        let hint = if details {
            ""
        } else {
            " (use --debug to expand)"
        };
        let mut text = match count {
            0 => return String::new(),
            1 => format!("\n \x1b[33m1 warning found{hint}:\n\x1b[0m"),
            _ => format!("\n \x1b[33m{count} warnings found{hint}:\n\x1b[0m"),
        };
        if !super::terminal::has_colors() {
            text = text.replace("\x1b[33m", "").replace("\x1b[0m", "");
        }
        for warning in &self.warnings {
            let short = String::from_utf8_lossy(&warning.short);
            text += &format!(" - {}\n", printable(&short));
            if !details {
                continue;
            }
            for detail in &warning.detail {
                text += &format!("{}\n", printable(&String::from_utf8_lossy(detail)));
            }
            if !warning.url.is_empty() {
                text += &format!("More info: {}\n", printable(&warning.url));
            }
            if let Some(info) = &warning.info {
                let data = String::from_utf8_lossy(&info.data);
                let lines = excerpt(&info.filename, &data, &lines_of(&warning.ranges));
                text += &crate::terminal::harmless(&lines);
                text.push('\n');
            }
        }
        text
    }

    /// Returns why steps were not taken from the cache, as far as the engine has said.
    pub fn reasons(&self) -> String {
        let with_reason = self.steps.iter().filter(|step| !step.reason.is_empty());
        let lines: String = with_reason
            .map(|step| {
                format!(
                    " - {}: {}\n",
                    printable(&step.name),
                    printable(&step.reason)
                )
            })
            .collect();
        match lines.as_str() {
            "" => lines,
            _ => format!("\nNot cached:\n{lines}"),
        }
    }

    /// Whether there are instructions to execute, and all of them came from the cache.
    pub fn is_all_cached(&self) -> bool {
        let is_instruction = |step: &&Step| {
            let name = step.name.strip_prefix('[');
            let name = name.and_then(|name| name.split_once("] "));
            name.is_some_and(|(place, instruction)| {
                let is_numbered = place.ends_with(|letter: char| letter.is_ascii_digit());
                is_numbered && !instruction.starts_with("FROM ")
            })
        };
        let mut steps = self.steps.iter().filter(is_instruction).peekable();
        steps.peek().is_some() && steps.all(|step| step.is_cached && !step.has_run)
    }
}

impl Step {
    /// Returns whether all that is new of it is that it is in the cache after it was shown.
    pub fn is_told_again(&self) -> bool {
        let is_cached = self.is_cached && self.completed.is_some() && self.error.is_empty();
        let has_news = !self.output.is_empty() || self.parts.iter().any(|part| part.is_new);
        self.is_told && is_cached && !has_news
    }

    pub fn has_failed(&self) -> bool {
        !self.error.is_empty() && !self.was_cancelled()
    }

    pub fn was_cancelled(&self) -> bool {
        self.error.ends_with("context canceled")
    }

    /// Returns the time that it has taken, or takes until `now`.
    pub fn duration(&self, now: f64) -> f64 {
        let Some(started) = self.started else {
            return self.before;
        };
        self.before + (self.completed.unwrap_or(now) - started).max(0.0)
    }

    /// Adds output, each line with the time since the step's begin.
    fn add_output(&mut self, time: f64, bytes: &[u8]) {
        let prefix = format!("{:.3} ", (time - self.started.unwrap_or(time)).max(0.0));
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.is_empty() {
                self.line.extend_from_slice(prefix.as_bytes());
                self.output.extend_from_slice(prefix.as_bytes());
            }
            self.output.extend_from_slice(piece);
            self.line.extend_from_slice(piece);
            if self.line.len() > 2 * LINE {
                let cut = self.line.len() - LINE;
                self.line.drain(prefix.len().min(cut)..cut);
            }
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.keep(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        }
    }

    fn keep(&mut self, line: String) {
        self.kept_bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > KEPT || self.kept_bytes > KEPT_BYTES {
            let Some(first) = self.lines.pop_front() else {
                return;
            };
            self.kept_bytes -= first.len();
            self.left_out += 1;
        }
    }

    /// Returns the last lines of the output, with their times.
    pub fn last_lines(&self, most: usize) -> Vec<String> {
        let rest =
            (!self.line.is_empty()).then(|| String::from_utf8_lossy(&self.line).into_owned());
        let all = self.lines.iter().cloned().chain(rest);
        let count = self.lines.len() + usize::from(!self.line.is_empty());
        all.skip(count.saturating_sub(most)).collect()
    }

    /// Returns the number of lines that were not kept.
    pub fn left_out(&self) -> usize {
        self.left_out
    }
}

impl Part {
    /// Returns its amount and its time: ` 1.05MB / 3.20MB 0.2s`.
    pub fn amount(&self) -> String {
        let size = |bytes: i64| {
            let bytes = u64::try_from(bytes).unwrap_or(0);
            whelk_text::size::decimal(bytes, 3)
        };
        let bytes = match (self.current, self.total) {
            (0, 0) => String::new(),
            (current, 0) => format!(" {}", size(current)),
            (current, total) => format!(" {} / {}", size(current), size(total)),
        };
        let end = self.completed.unwrap_or(self.seen);
        match self.started.map(|started| end - started) {
            Some(time) if time > 0.01 => format!("{bytes} {time:.1}s"),
            _ => bytes,
        }
    }

    pub fn is_done(&self) -> bool {
        self.completed.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_output_is_kept() {
        let mut step = Step::default();
        for _ in 0..100 {
            step.add_output(0.0, &[b'x'; 100_000]);
        }
        assert!(step.line.len() <= 2 * LINE);
        step.add_output(0.0, b"end\n");
        let last = step.last_lines(1);
        assert!(last[0].starts_with("0.000 ") && last[0].ends_with("end"));
        for number in 0..10_000 {
            step.add_output(0.0, format!("{number} {}\n", "y".repeat(1000)).as_bytes());
        }
        let kept: usize = step.lines.iter().map(String::len).sum();
        assert!(kept <= KEPT_BYTES && kept == step.kept_bytes);
        assert_eq!(step.left_out() + step.lines.len(), 10_001);
        let mut trace = Trace {
            steps: vec![step],
            ..Trace::default()
        };
        trace.forget_output(&[0]);
        assert_eq!(trace.steps[0].output.capacity(), 0);
    }

    #[test]
    fn the_clock_of_the_engine_may_differ() {
        let mut trace = Trace::default();
        let at = |time: i64| StatusResponse {
            vertexes: vec![Vertex {
                started: Some(Timestamp::from_nanos(time * 1_000_000_000)),
                ..Vertex::default()
            }],
            ..StatusResponse::default()
        };
        trace.compare(&at(1000), 5003.0);
        trace.compare(&at(1001), 5001.5);
        trace.compare(&at(1002), 5010.0);
        assert_eq!(trace.behind, Some(4000.5));
        let mut trace = Trace::default();
        trace.update(&at(1000));
        assert!((trace.now() - 1000.0).abs() < 60.0);
    }

    #[test]
    fn that_all_was_cached_is_told() {
        let step = |name: &str, is_cached: bool| Vertex {
            digest: name.into(),
            name: name.into(),
            started: Some(Timestamp::from_nanos(1)),
            completed: Some(Timestamp::from_nanos(2)),
            cached: is_cached,
            ..Vertex::default()
        };
        let check = |steps: &[Vertex], expected: bool| {
            let around = [
                step("[internal] load build context", false),
                step("[1/2] FROM busybox", false),
            ];
            let mut trace = Trace::default();
            trace.update(&StatusResponse {
                vertexes: [&around[..], steps].concat(),
                ..StatusResponse::default()
            });
            assert_eq!(trace.is_all_cached(), expected);
        };
        check(&[], false);
        check(&[step("[a 2/2] RUN x", true)], true);
        check(&[step("[2/2] RUN x", false)], false);
        // One that was asked for again.
        let again = [step("[2/2] RUN x", false), step("[2/2] RUN x", true)];
        check(&again, false);
    }

    #[test]
    fn what_others_have_named_does_not_control_the_terminal() {
        let name = "a\x1b]0;x\x07";
        let trace = Trace {
            steps: vec![Step {
                name: name.into(),
                reason: name.into(),
                ..Step::default()
            }],
            warnings: vec![VertexWarning {
                short: name.into(),
                ..VertexWarning::default()
            }],
            ..Trace::default()
        };
        assert_eq!(trace.reasons(), "\nNot cached:\n - a: a\n");
        assert!(trace.warnings(false).ends_with(" - a\n"));
    }
}
