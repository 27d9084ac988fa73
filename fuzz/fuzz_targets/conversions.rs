//! Converts a Dockerfile to a low-level build, which must be a valid one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whelk_dockerfile::convert::{Answer, Answers, Options, Outcome, Reference, Request, convert};
use whelk_dockerfile::lint::Linter;
use whelk_llb::Graph;
use whelk_llb::pb::Platform;

const IMAGE: &str = r#"{"architecture":"amd64","os":"linux","config":{"Env":["A=b"],"OnBuild":["COPY --from=tools /x /y"]},
    "rootfs":{"type":"layers","diff_ids":["sha256:1"]}}"#;

fn reference(text: &str) -> Result<Reference, String> {
    if text.is_empty() || text.chars().any(char::is_whitespace) {
        return Err("invalid reference format".into());
    }
    Ok(Reference {
        full: format!("docker.io/library/{text}:latest"),
        familiar: text.into(),
    })
}

fn answer(request: &Request) -> Answer {
    match request {
        Request::Image { reference, .. } => Answer::Image {
            reference: reference.clone(),
            digest: String::new(),
            config: IMAGE.into(),
        },
        Request::Ignore { .. } => Answer::Ignore(Some("*.o\n!x".into())),
        Request::Time { .. } => Answer::Time(Some(1)),
    }
}

fuzz_target!(|text: &str| {
    let mut options = Options::new(Platform::new("linux", "amd64", ""), reference);
    options.all_stages = text.len().is_multiple_of(2);
    options.contexts.insert("named".into(), "local:dir".into());
    let mut answers = Answers::new();
    // Each round of questions comes from triggers of the images before.
    for _ in 0..8 {
        match convert(text, &options, &answers, &mut Linter::default()) {
            Err(_) => return,
            Ok(Outcome::Needs(requests)) => {
                assert!(!requests.is_empty());
                answers.extend(requests.into_iter().map(|request| {
                    let answer = answer(&request);
                    (request, answer)
                }));
            }
            Ok(Outcome::Done(done)) => {
                Graph::new(done.definition).expect("check a converted build");
                return;
            }
        }
    }
});
