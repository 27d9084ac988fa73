//! The values of `--security-opt`.

use serde_json::Value;

use crate::commands::container::create::CreateContainerArgs;
use crate::{Failure, Outcome, plain};

/// Converts security options to the engine's form: a path of a seccomp profile is replaced by its
/// content. Also returns whether `systempaths=unconfined` was given.
pub(super) fn security(args: &CreateContainerArgs) -> Outcome<(Vec<String>, bool)> {
    let mut options = Vec::new();
    let mut open_paths = false;
    for option in &args.security_opt {
        match option.split_once('=').or_else(|| option.split_once(':')) {
            Some(("systempaths", "unconfined")) => open_paths = true,
            Some(("seccomp", profile)) if !matches!(profile, "unconfined" | "builtin") => {
                if profile.is_empty() {
                    return Err(Failure::with_code(
                        125,
                        format!("Invalid --security-opt: {option:?}"),
                    ));
                }
                let text = std::fs::read_to_string(profile).map_err(|error| {
                    Failure::with_code(
                        125,
                        format!(
                            "opening seccomp profile ({profile}) failed: open {profile}: {}",
                            plain(&error)
                        ),
                    )
                })?;
                let json: Value = serde_json::from_str(&text).map_err(|error| {
                    Failure::with_code(
                        125,
                        format!("compacting json for seccomp profile ({profile}) failed: {error}"),
                    )
                })?;
                options.push(format!("seccomp={json}"));
            }
            None if option != "no-new-privileges" => {
                return Err(Failure::with_code(
                    125,
                    format!("Invalid --security-opt: {option:?}"),
                ));
            }
            _ => options.push(option.clone()),
        }
    }
    Ok((options, open_paths))
}
