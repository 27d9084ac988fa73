//! Functions of digests.

use sha2::{Digest as _, Sha256, Sha512};

use super::{Returned, count};
use crate::value::Value;

pub(super) fn call(name: &str, arguments: &[Value]) -> Option<Returned> {
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let digest = |text: &str| match name {
        "sha256" => hex(&Sha256::digest(text)),
        _ => hex(&Sha512::digest(text)),
    };
    match (name, arguments) {
        ("sha256" | "sha512", [value]) => Some(value.text().map(|text| digest(&text).into())),
        ("sha256" | "sha512", _) => Some(count("1 argument", arguments)),
        _ => None,
    }
}
