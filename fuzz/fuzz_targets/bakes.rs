//! Reads a bake file, in HCL, JSON or Compose's YAML, and resolves all of its targets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whelk_bake::{Definitions, Environment, File};

fuzz_target!(|text: &str| {
    let environment = Environment {
        variables: [("A".to_owned(), "1,b=2".to_owned())].into(),
        dot_env: "B=2\n".into(),
        ..Environment::default()
    };
    for name in ["x.hcl", "x.json", "x.yaml", "x"] {
        let file = File {
            name: name.to_owned(),
            content: text.to_owned(),
        };
        let more = |path: &str| Ok((path != ".env").then(|| text.to_owned()));
        let Ok(definitions) = Definitions::read(&[file], &environment, &more) else {
            continue;
        };
        let overrides = ["*.tags=x", "*.args.A"].map(str::to_owned);
        let targets: Vec<String> = definitions.targets.keys().cloned().collect();
        let _ = definitions.resolve(&targets, &[], |_| None);
        let _ = definitions.resolve(&targets, &overrides, |_| Some("1".to_owned()));
    }
});
