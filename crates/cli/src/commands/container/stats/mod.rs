//! The `stats` command.
//!
//! Each container has a task that reads its statistics and sends them to the one that prints the table. It
//! begins and ends with the container, as the engine's events tell.

mod figures;

use std::time::Duration;

use clap::Args;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};
use whelk_api_types::{ContainerStatsResponse, ContainerSummary, EventMessage};

use crate::client::{Client, escape_name, no_body, query};
use crate::commands::arguments::filters;
use crate::commands::messages::Messages;
use crate::output::print;
use crate::{Failure, Outcome};

use figures::{Figures, TABLE, row};

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Format output using a custom template
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Disable streaming stats and only pull the first result
    #[arg(long)]
    no_stream: bool,
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

const DEFAULT: &str = "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}";

/// Time between two prints of the table.
const REFRESH: Duration = Duration::from_millis(500);

/// Time without statistics of a container after which its row is shown without figures.
const PATIENCE: Duration = Duration::from_secs(2);

/// A message of the task that reads the statistics of a container.
enum Report {
    Figures(Figures),
    /// There will be no more, because of this failure, or because the engine has ended the stream.
    Ended(Option<Failure>),
}

/// A container in the table.
struct Watched {
    /// As it was named, or its id.
    container: String,
    figures: Figures,
    /// When the last report came, or it was added.
    since: Instant,
    has_reported: bool,
    /// Whether the figures are not current.
    is_invalid: bool,
    failure: Option<Failure>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The containers in the table, and their reports.
struct Board {
    client: Client,
    is_stream: bool,
    watched: Vec<Watched>,
    sender: mpsc::Sender<(String, Report)>,
    reports: mpsc::Receiver<(String, Report)>,
}

pub(crate) async fn stats(client: &Client, mut args: StatsArgs) -> Outcome {
    args.format = client.format(args.format, false, "statsFormat");
    let (sender, reports) = mpsc::channel(64);
    let mut board = Board {
        client: client.clone(),
        is_stream: !args.no_stream,
        watched: Vec::new(),
        sender,
        reports,
    };
    let follows_events = args.containers.is_empty();
    let mut events = None;
    if follows_events {
        // Before the list, so that no start is missed.
        if board.is_stream {
            events = Some(container_events(client).await?);
        }
        let query = query(&[("all", if args.all { "1" } else { "" })]);
        let listed: Vec<ContainerSummary> = client.get(&format!("/containers/json{query}")).await?;
        listed.iter().for_each(|one| board.add(&one.id));
    } else {
        args.containers.iter().for_each(|name| board.add(name));
    }
    board.wait_for_first().await;
    if !follows_events {
        let failures = board.watched.iter().filter_map(|one| one.failure.as_ref());
        let texts: Vec<&str> = failures.map(|failure| failure.text.as_str()).collect();
        if !texts.is_empty() {
            return Err(Failure::new(texts.join("\n")));
        }
    }
    if !board.is_stream {
        print(&board.table(&args)?)?;
        return Ok(0);
    }
    board.show(&args, events).await
}

/// Subscribes to the events of containers.
async fn container_events(client: &Client) -> Outcome<Messages> {
    let query = query(&[("filters", &filters(&["type=container".to_owned()])?)]);
    let path = format!("/events{query}");
    let response = client.send(hyper::Method::GET, &path, &[], no_body());
    Ok(Messages::of(response.await?))
}

impl Board {
    fn add(&mut self, container: &str) {
        if self.watched.iter().any(|one| one.container == container) {
            return;
        }
        let reading = read(
            self.client.clone(),
            container.to_owned(),
            self.is_stream,
            self.sender.clone(),
        );
        self.watched.push(Watched {
            container: container.to_owned(),
            figures: Figures::default(),
            since: Instant::now(),
            has_reported: false,
            is_invalid: false,
            failure: None,
            task: tokio::spawn(reading).abort_handle(),
        });
    }

    fn receive(&mut self, container: &str, report: Report) {
        let mut watched = self.watched.iter_mut();
        let Some(one) = watched.find(|one| one.container == container) else {
            return;
        };
        one.since = Instant::now();
        one.has_reported = true;
        match report {
            Report::Figures(figures) => {
                one.figures = figures;
                one.is_invalid = false;
            }
            Report::Ended(failure) => {
                one.is_invalid |= self.is_stream || failure.is_some();
                one.failure = failure;
            }
        }
    }

    /// Waits for the first report of each container, for [`PATIENCE`] at most.
    async fn wait_for_first(&mut self) {
        let end = Instant::now() + PATIENCE;
        while self.watched.iter().any(|one| !one.has_reported) {
            let Ok(report) = tokio::time::timeout_at(end, self.reports.recv()).await else {
                break;
            };
            if let Some((container, report)) = report {
                self.receive(&container, report);
            }
        }
        self.invalidate_late();
    }

    fn invalidate_late(&mut self) {
        for one in &mut self.watched {
            if one.since.elapsed() >= PATIENCE && !one.is_invalid {
                one.is_invalid = true;
                one.figures.reset();
            }
        }
    }

    fn table(&self, args: &StatsArgs) -> Outcome<String> {
        let rows = self
            .watched
            .iter()
            .map(|one| row(&one.container, &one.figures, one.is_invalid, args.no_trunc));
        TABLE.text(&args.format, false, DEFAULT, rows.collect())
    }

    /// Prints the table again and again.
    async fn show(&mut self, args: &StatsArgs, mut events: Option<Messages>) -> Outcome {
        let follows_events = events.is_some();
        let mut ticks = tokio::time::interval_at(Instant::now() + REFRESH, REFRESH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next_event = async {
                match &mut events {
                    Some(events) => events.next::<EventMessage>().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((container, report)) = self.reports.recv() => self.receive(&container, report),
                event = next_event => match event {
                    Ok(Some(event)) => self.follow(&event, args.all),
                    // The engine has ended.
                    Ok(None) | Err(_) => return Ok(0),
                },
                _ = ticks.tick() => {
                    self.invalidate_late();
                    print(&on_screen(&self.table(args)?))?;
                    if self.watched.is_empty() && !follows_events {
                        return Ok(0);
                    }
                }
            }
        }
    }

    fn follow(&mut self, event: &EventMessage, all: bool) {
        let id = &event.actor.id;
        match event.action.as_str() {
            "create" if all => self.add(id),
            "start" => self.add(id),
            // With --all, the line of a removed container stays, without figures, as with Docker's client.
            "die" | "destroy" if !all => self.watched.retain(|one| one.container != *id),
            _ => {}
        }
    }
}

/// Returns a text that replaces the one on the screen, without clearing it before, which would flicker.
fn on_screen(text: &str) -> String {
    const HOME: &str = "\x1b[H";
    const CLEAR_LINE: &str = "\x1b[K";
    const CLEAR_BELOW: &str = "\x1b[J";
    let lines: String = text
        .split('\n')
        .map(|line| format!("{line} {CLEAR_LINE}\n"))
        .collect();
    format!("{HOME}{lines}{CLEAR_BELOW}")
}

/// Reads a container's statistics and reports them.
async fn read(
    client: Client,
    container: String,
    is_stream: bool,
    sender: mpsc::Sender<(String, Report)>,
) {
    let failure = read_until_end(&client, &container, is_stream, &sender)
        .await
        .err();
    // Fails if the command has ended.
    let _ = sender.send((container, Report::Ended(failure))).await;
}

async fn read_until_end(
    client: &Client,
    container: &str,
    is_stream: bool,
    sender: &mpsc::Sender<(String, Report)>,
) -> Outcome<()> {
    let path = format!(
        "/containers/{}/stats?stream={}",
        escape_name(container),
        u8::from(is_stream)
    );
    let response = client.send(hyper::Method::GET, &path, &[], no_body());
    let mut messages = Messages::of(response.await?);
    while let Some(stats) = messages.next::<ContainerStatsResponse>().await? {
        let report = Report::Figures(Figures::of(&stats));
        if sender.send((container.to_owned(), report)).await.is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_on_the_screen_is_cleared_to_its_end() {
        assert_eq!(
            on_screen("a\nb\n"),
            "\x1b[Ha \x1b[K\nb \x1b[K\n \x1b[K\n\x1b[J"
        );
    }
}
