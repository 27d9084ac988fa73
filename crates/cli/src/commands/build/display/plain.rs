//! Progress as lines. One step is shown at a time, and another one when it has ended, or after some time.
//!
//! ```text
//! #5 [2/3] RUN make
//! #5 0.123 a line of output
//! #5 DONE 1.2s
//! ```

use std::time::{Duration, Instant};

use super::terminal::printable;
use super::trace::{REASON, Step, Trace};

/// How long news of a step wait while another one is shown.
const PATIENCE: Duration = Duration::from_secs(5);

/// How much and how often a part changes until it is shown again.
const MIN_PART: f64 = 0.05;
const MIN_TIME: f64 = 5.0;

#[derive(Debug, Default)]
pub(super) struct Plain {
    /// The step that is being shown.
    current: Option<usize>,
    count: usize,
    /// What was shown last of parts: of which step, name, time and amount.
    shown: Vec<(usize, String, f64, i64)>,
    /// Whether the last line is not complete.
    is_open: bool,
}

impl Plain {
    /// Takes news of some steps, which [`Plain::print`] returns.
    pub fn note(trace: &mut Trace, updated: &[usize]) {
        let now = Instant::now();
        for index in updated {
            let step = &mut trace.steps[*index];
            if step.started.is_some() {
                step.waits.get_or_insert(now);
            }
        }
    }

    /// Returns what is to be printed of the news. The less often it is called, the less it goes from one step to another.
    pub fn print(&mut self, trace: &mut Trace) -> Vec<u8> {
        let mut text = Vec::new();
        let is_done = |step: &Step| step.waits.is_some() && step.completed.is_some();
        if let Some(current) = self.current
            && trace.steps[current].waits.is_some()
        {
            self.step(&mut text, trace, current);
        }
        for index in 0..trace.steps.len() {
            if is_done(&trace.steps[index]) {
                self.step(&mut text, trace, index);
            }
        }
        // What waits for the longest time.
        let waiting = trace.steps.iter().enumerate();
        let waiting = waiting.filter_map(|(index, step)| Some((step.waits?, index)));
        if let Some((since, index)) = waiting.min()
            && (self.current.is_none() || since.elapsed() >= PATIENCE)
        {
            self.step(&mut text, trace, index);
        }
        text
    }

    /// Returns what is left when a build has ended.
    pub fn end(&mut self, trace: &mut Trace) -> Vec<u8> {
        let mut text = self.print(trace);
        for index in 0..trace.steps.len() {
            if trace.steps[index].waits.is_some() {
                self.step(&mut text, trace, index);
            }
        }
        self.close_line(&mut text);
        text
    }

    fn close_line(&mut self, text: &mut Vec<u8>) {
        if std::mem::take(&mut self.is_open) {
            text.push(b'\n');
        }
    }

    fn step(&mut self, text: &mut Vec<u8>, trace: &mut Trace, index: usize) {
        // A build may ask for a step several times, which changes nothing.
        if trace.steps[index].is_told_again() {
            trace.steps[index].waits = None;
            return;
        }
        if self.current != Some(index) {
            self.close_line(text);
            if let Some(old) = self.current {
                let number = trace.steps[old].number.unwrap_or_default();
                text.extend(format!("#{number} ...\n\n").into_bytes());
            }
        }
        let step = &mut trace.steps[index];
        step.waits = None;
        let number = *step.number.get_or_insert_with(|| {
            self.count += 1;
            self.count
        });
        if self.current != Some(index) {
            let name = printable(&step.name);
            text.extend(format!("#{number} {name}\n").into_bytes());
            self.current = Some(index);
        }
        self.parts(text, step, index, number);
        self.output(text, step, number);
        let is_open_part = step.parts.iter().any(|part| !part.is_done());
        let Some(completed) = step
            .completed
            .filter(|_| !is_open_part || !step.error.is_empty())
        else {
            return;
        };
        self.close_line(text);
        let end = match step.error.as_str() {
            "" if step.is_cached => "CACHED".to_owned(),
            "" => format!("DONE {:.1}s", step.duration(completed)),
            _ if step.was_cancelled() => "CANCELED".to_owned(),
            error => format!("ERROR: {}", crate::terminal::harmless(error)),
        };
        text.extend(format!("#{number} {end}\n\n").into_bytes());
        step.is_told = true;
        self.current = None;
    }

    fn parts(&mut self, text: &mut Vec<u8>, step: &mut Step, index: usize, number: usize) {
        for part in &mut step.parts {
            if !std::mem::take(&mut part.is_new) {
                continue;
            }
            let last = self.shown.iter_mut();
            let mut last = last.filter(|(step, name, ..)| *step == index && *name == part.name);
            if let Some((_, _, time, amount)) = last.next() {
                #[allow(clippy::cast_precision_loss, reason = "only a share is wanted")]
                let share = (part.current - *amount) as f64 / part.total.max(1) as f64;
                let is_small = part.total == 0 || share < MIN_PART;
                if !part.is_done() && is_small && part.seen - *time < MIN_TIME {
                    continue;
                }
                (*time, *amount) = (part.seen, part.current);
            } else {
                let shown = (index, part.name.clone(), part.seen, part.current);
                self.shown.push(shown);
            }
            if std::mem::take(&mut self.is_open) {
                text.push(b'\n');
            }
            let is_done = part.is_done() && !part.name.starts_with(REASON);
            let done = if is_done { " done" } else { "" };
            let name = printable(&part.name);
            text.extend(format!("#{number} {name}{}{done}\n", part.amount()).into_bytes());
        }
    }

    /// Adds the output's own bytes, whatever they are.
    fn output(&mut self, text: &mut Vec<u8>, step: &mut Step, number: usize) {
        let output = std::mem::take(&mut step.output);
        for line in output.split_inclusive(|byte| *byte == b'\n') {
            if !self.is_open {
                text.extend(format!("#{number} ").into_bytes());
            }
            text.extend_from_slice(line);
            self.is_open = !line.ends_with(b"\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use whelk_buildkit::pb::Timestamp;
    use whelk_buildkit::pb::control::{StatusResponse, Vertex, VertexLog, VertexStatus};

    use super::*;

    fn at(tenths: i64) -> Option<Timestamp> {
        Some(Timestamp::from_nanos(tenths * 100_000_000))
    }

    fn vertex(name: &str, started: i64, completed: Option<i64>) -> StatusResponse {
        let vertex = Vertex {
            digest: name.into(),
            name: format!("step {name}"),
            started: at(started),
            completed: completed.and_then(at),
            ..Vertex::default()
        };
        StatusResponse {
            vertexes: vec![vertex],
            ..StatusResponse::default()
        }
    }

    fn log(name: &str, time: i64, text: impl AsRef<[u8]>) -> StatusResponse {
        let log = VertexLog {
            vertex: name.into(),
            timestamp: at(time),
            stream: 1,
            msg: text.as_ref().to_vec(),
        };
        StatusResponse {
            logs: vec![log],
            ..StatusResponse::default()
        }
    }

    #[track_caller]
    fn check(responses: &[StatusResponse], expected: impl AsRef<[u8]>) {
        let (mut trace, mut plain, mut text) = (Trace::default(), Plain::default(), Vec::new());
        for response in responses {
            let updated = trace.update(response);
            Plain::note(&mut trace, &updated);
            text.extend(plain.print(&mut trace));
        }
        text.extend(plain.end(&mut trace));
        assert_eq!(
            text,
            expected.as_ref(),
            "{}",
            String::from_utf8_lossy(&text)
        );
    }

    #[test]
    fn output_is_shown_as_it_is() {
        // A letter comes in two parts, and a byte is of another encoding.
        check(
            &[
                vertex("\x1b]0;x\x07", 10, None),
                log("\x1b]0;x\x07", 10, b"\xc3"),
                log("\x1b]0;x\x07", 10, b"\xa9 \xe9\n"),
            ],
            b"#1 step \n#1 0.000 \xc3\xa9 \xe9\n",
        );
    }

    #[test]
    fn a_step_that_has_waited_is_shown() {
        let (mut trace, mut plain) = (Trace::default(), Plain::default());
        let mut print = |response: &StatusResponse, waits: bool| {
            let updated = trace.update(response);
            if waits {
                trace.steps[1].waits = Instant::now().checked_sub(PATIENCE);
            }
            Plain::note(&mut trace, &updated);
            plain.print(&mut trace)
        };
        print(&vertex("a", 10, None), false);
        assert_eq!(print(&vertex("b", 10, None), false), b"");
        let shown = print(&log("b", 11, "news\n"), true);
        assert_eq!(shown, b"#1 ...\n\n#2 step b\n#2 0.100 news\n");
    }

    #[test]
    fn one_step_is_shown_at_a_time() {
        let responses = [
            vertex("a", 10, None),
            log("a", 12, "one\ntw"),
            vertex("b", 10, None),
            log("b", 13, "beside\n"),
            log("a", 15, "o\n"),
            vertex("a", 10, Some(20)),
            vertex("b", 10, Some(11)),
        ];
        check(
            &responses,
            "#1 step a\n#1 0.200 one\n#1 0.200 two\n#1 DONE 1.0s\n\n#2 step b\n#2 0.300 beside\n#2 DONE 0.1s\n\n",
        );
    }

    #[test]
    fn ends_are_told() {
        let with = |name: &str, change: fn(&mut Vertex)| {
            let mut response = vertex(name, 10, Some(10));
            change(&mut response.vertexes[0]);
            response
        };
        check(
            &[
                with("a", |vertex| vertex.cached = true),
                with("b", |vertex| vertex.error = "no".into()),
                with("c", |vertex| vertex.error = "context canceled".into()),
            ],
            "#1 step a\n#1 CACHED\n\n#2 step b\n#2 ERROR: no\n\n#3 step c\n#3 CANCELED\n\n",
        );
    }

    #[test]
    fn news_that_come_together_are_shown_by_their_steps() {
        let (mut trace, mut plain) = (Trace::default(), Plain::default());
        for response in [
            vertex("a", 10, None),
            vertex("b", 10, None),
            log("a", 11, "one\n"),
            log("b", 11, "two\n"),
            vertex("b", 10, Some(12)),
            vertex("a", 10, Some(13)),
        ] {
            let updated = trace.update(&response);
            Plain::note(&mut trace, &updated);
        }
        let text = String::from_utf8(plain.print(&mut trace)).unwrap();
        let expected =
            "#1 step a\n#1 0.100 one\n#1 DONE 0.3s\n\n#2 step b\n#2 0.100 two\n#2 DONE 0.2s\n\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_step_that_is_cached_again_is_told_once() {
        let cached = || {
            let mut response = vertex("a", 10, Some(10));
            response.vertexes[0].cached = true;
            response
        };
        check(
            &[vertex("a", 10, Some(11)), cached(), cached()],
            "#1 step a\n#1 DONE 0.1s\n\n",
        );
        check(&[cached(), cached()], "#1 step a\n#1 CACHED\n\n");
        let news = [cached(), log("a", 10, "news\n")];
        check(
            &news,
            "#1 step a\n#1 CACHED\n\n#1 step a\n#1 0.000 news\n#1 CACHED\n\n",
        );
    }

    #[test]
    fn parts_are_shown_when_they_change() {
        let part = |current: i64, completed: Option<i64>| StatusResponse {
            statuses: vec![VertexStatus {
                id: "transferring x:".into(),
                vertex: "a".into(),
                current,
                started: at(10),
                timestamp: at(12),
                completed: completed.and_then(at),
                ..VertexStatus::default()
            }],
            ..StatusResponse::default()
        };
        check(
            &[
                vertex("a", 10, None),
                part(1000, None),
                part(2000, None),
                part(3000, Some(15)),
                vertex("a", 10, Some(16)),
            ],
            "#1 step a\n#1 transferring x: 1kB 0.2s\n#1 transferring x: 3kB 0.5s done\n#1 DONE 0.6s\n\n",
        );
    }
}
