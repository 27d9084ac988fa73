//! The `system check` command.

use clap::Args;
use whelk_api_types::{SystemCheckMessage, SystemChecked};

use crate::client::{Client, no_body, query};
use crate::commands::messages::Messages;
use crate::output::print_line;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Repair what is found: remove what belongs to nothing, restore copies of records, move damaged content out
    /// of the way
    #[arg(long)]
    repair: bool,
    /// Verify also the content of all layers, which reads all of it
    #[arg(long)]
    layers: bool,
}

/// Prints the problems of the engine, and what was verified. Problems are an error, also if they were repaired.
pub(crate) async fn check(client: &Client, args: CheckArgs) -> Outcome {
    let flag = |set: bool| if set { "1" } else { "" };
    let query = query(&[("repair", flag(args.repair)), ("layers", flag(args.layers))]);
    let path = format!("/system/check{query}");
    let response = client
        .send(hyper::Method::POST, &path, &[], no_body())
        .await?;
    let mut messages = Messages::of(response);
    while let Some(message) = messages.next::<SystemCheckMessage>().await? {
        if let Some(checked) = message.checked {
            return print_result(checked);
        }
        if message.problem.is_empty() {
            return Err(without_hint(message.error));
        }
        print_line!("{}", line(&message))?;
    }
    Err(without_hint(
        "connection to the engine lost: the check has not ended".into(),
    ))
}

/// Returns the text of a problem, with what was done about it.
fn line(message: &SystemCheckMessage) -> String {
    let problem = &message.problem;
    match (message.repaired.as_str(), message.error.as_str()) {
        ("", "") => problem.clone(),
        ("", error) => format!("{problem}: not repaired: {error}"),
        (repaired, _) => format!("{problem}: {repaired}"),
    }
}

fn print_result(checked: SystemChecked) -> Outcome {
    print_line!(
        "{} containers, {} images, {} layers, {} blobs, {} volumes, {} networks, {} bytes of content verified",
        checked.containers,
        checked.images,
        checked.layers,
        checked.blobs,
        checked.volumes,
        checked.networks,
        checked.bytes
    )?;
    match checked.problems {
        0 => Ok(0),
        1 => Err(without_hint("check: 1 problem".into())),
        count => Err(without_hint(format!("check: {count} problems"))),
    }
}

fn without_hint(text: String) -> Failure {
    Failure {
        hint: false,
        ..Failure::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_was_done() {
        let told = |repaired: &str, error: &str| {
            line(&SystemCheckMessage {
                problem: "a is lost".into(),
                repaired: repaired.into(),
                error: error.into(),
                checked: None,
            })
        };
        assert_eq!(told("", ""), "a is lost");
        assert_eq!(told("written again", ""), "a is lost: written again");
        assert_eq!(
            told("", "it is in use"),
            "a is lost: not repaired: it is in use"
        );
    }
}
