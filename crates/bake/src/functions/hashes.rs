//! Functions of digests and of what is unique.

use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha512};

use super::{Returned, count, integer};
use crate::value::Value;

/// Bytes of a text that bcrypt takes into account.
const MAX_PASSWORD: usize = 72;

/// What bcrypt costs without a number: two to the power of it are its rounds.
const COST: i64 = 10;

/// Calls a function. `random` returns bytes that no other call has.
pub(super) fn call(
    name: &str,
    arguments: &[Value],
    random: &dyn Fn() -> [u8; 16],
) -> Option<Returned> {
    let digest = |text: &str| match name {
        "md5" => hex(&md5::compute(text).0),
        "sha1" => hex(&Sha1::digest(text)),
        "sha256" => hex(&Sha256::digest(text)),
        _ => hex(&Sha512::digest(text)),
    };
    Some(match (name, arguments) {
        ("md5" | "sha1" | "sha256" | "sha512", [value]) => {
            value.text().map(|text| digest(&text).into())
        }
        ("bcrypt", [password]) => bcrypt(password, COST, random()),
        ("bcrypt", [password, cost]) => {
            integer(cost).and_then(|cost| bcrypt(password, cost, random()))
        }
        ("uuidv4", []) => Ok(uuid(random(), 4).into()),
        ("uuidv5", [namespace, name]) => uuidv5(namespace, name),
        ("md5" | "sha1" | "sha256" | "sha512", _) => count("1 argument", arguments),
        ("bcrypt", _) => count("1 argument or 2", arguments),
        ("uuidv4", _) => count("no argument", arguments),
        ("uuidv5", _) => count("2 arguments", arguments),
        _ => return None,
    })
}

/// Returns how many steps a call of bcrypt counts as: one takes some milliseconds and more. It refuses what costs too much itself.
pub(super) fn cost_of_bcrypt(arguments: &[Value]) -> usize {
    let cost = arguments.get(1).map_or(Ok(COST), integer);
    match usual(cost.unwrap_or(COST)) {
        cost @ 0..32 => 20 << cost,
        _ => 0,
    }
}

/// Returns the cost that is meant: as in Go, one that is too small is the usual one.
fn usual(cost: i64) -> i64 {
    if cost < 4 { COST } else { cost }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bcrypt(password: &Value, cost: i64, salt: [u8; 16]) -> Returned {
    let password = password.text()?;
    if password.len() > MAX_PASSWORD {
        return Err(format!("password length exceeds {MAX_PASSWORD} bytes"));
    }
    let outside = || format!("cost {cost} is outside allowed range (4,31)");
    let cost = u32::try_from(usual(cost)).ok().filter(|cost| *cost < 32);
    let cost = cost.ok_or_else(outside)?;
    let hash = bcrypt::hash_with_salt(password, cost, salt).map_err(|error| error.to_string())?;
    Ok(hash.format_for_version(bcrypt::Version::TwoA).into())
}

/// Returns the text of an identifier with its version (RFC 9562, 5.4 and 5.5).
fn uuid(mut bytes: [u8; 16], version: u8) -> String {
    bytes[6] = (bytes[6] & 0x0f) | (version << 4);
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let text = hex(&bytes);
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    let parts: Vec<&str> = parts.into_iter().map(|part| &text[part]).collect();
    parts.join("-")
}

fn uuidv5(namespace: &Value, name: &Value) -> Returned {
    let namespace = namespace.text()?;
    let known = match namespace.as_str() {
        "dns" => "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "url" => "6ba7b811-9dad-11d1-80b4-00c04fd430c8",
        "oid" => "6ba7b812-9dad-11d1-80b4-00c04fd430c8",
        "x500" => "6ba7b814-9dad-11d1-80b4-00c04fd430c8",
        other => other,
    };
    let wrong = || format!("uuidv5() doesn't support namespace {namespace}");
    let bytes = parsed(known).ok_or_else(wrong)?;
    let digest = Sha1::new_with_prefix(bytes).chain_update(name.text()?);
    let digest = digest.finalize();
    let mut bytes = [0; 16];
    for (byte, own) in bytes.iter_mut().zip(digest) {
        *byte = own;
    }
    Ok(uuid(bytes, 5).into())
}

/// Reads an identifier with or without hyphens.
fn parsed(text: &str) -> Option<[u8; 16]> {
    let has_hyphens = text.len() == 36;
    let is_hyphen = |at: usize| has_hyphens && [8, 13, 18, 23].contains(&at);
    let mut digits = Vec::with_capacity(32);
    for (at, char) in text.char_indices() {
        match char {
            '-' if is_hyphen(at) => {}
            _ if is_hyphen(at) => return None,
            char => digits.push(u8::try_from(char.to_digit(16)?).ok()?),
        }
    }
    let pairs = digits.chunks_exact(2).map(|pair| (pair[0] << 4) | pair[1]);
    let bytes: Vec<u8> = pairs.collect();
    bytes.try_into().ok().filter(|_| digits.len() == 32)
}
