//! Random names for containers created without one (an adjective and a sea creature), and random
//! ids.

use std::fmt::Write as _;

const ADJECTIVES: &[&str] = &[
    "agile", "amber", "bold", "brave", "breezy", "bright", "brisk", "calm", "candid", "cheerful",
    "clever", "coral", "cosy", "crisp", "curious", "dapper", "daring", "deft", "eager", "earnest",
    "fair", "fearless", "fleet", "fond", "frank", "fresh", "gentle", "glad", "golden", "graceful",
    "hardy", "hearty", "honest", "humble", "jolly", "keen", "kind", "lively", "loyal", "lucid",
    "mellow", "merry", "mighty", "mindful", "modest", "neat", "nimble", "noble", "patient",
    "placid", "plucky", "polite", "proud", "quick", "quiet", "radiant", "ready", "sage", "serene",
    "sharp", "silver", "sleek", "smooth", "snug", "spry", "stable", "steady", "stoic", "sturdy",
    "subtle", "sunny", "swift", "tender", "thrifty", "tidy", "tranquil", "trusty", "upbeat",
    "valiant", "vivid", "warm", "wise", "witty", "zesty",
];

const CREATURES: &[&str] = &[
    "abalone",
    "albatross",
    "anchovy",
    "anemone",
    "auk",
    "barnacle",
    "barracuda",
    "beluga",
    "bonito",
    "bream",
    "carp",
    "clam",
    "cockle",
    "cod",
    "conch",
    "coot",
    "cormorant",
    "cowrie",
    "crab",
    "crayfish",
    "cuttlefish",
    "dab",
    "dolphin",
    "dory",
    "dugong",
    "eel",
    "eider",
    "flounder",
    "gannet",
    "goby",
    "grebe",
    "grouper",
    "guillemot",
    "gull",
    "gurnard",
    "haddock",
    "hake",
    "halibut",
    "heron",
    "herring",
    "kelpie",
    "kingfisher",
    "krill",
    "lamprey",
    "limpet",
    "ling",
    "lobster",
    "mackerel",
    "manatee",
    "manta",
    "marlin",
    "minnow",
    "mullet",
    "murex",
    "mussel",
    "narwhal",
    "nautilus",
    "octopus",
    "orca",
    "osprey",
    "otter",
    "oyster",
    "pelican",
    "perch",
    "periwinkle",
    "petrel",
    "pike",
    "pilchard",
    "plaice",
    "plover",
    "pollock",
    "porpoise",
    "prawn",
    "puffin",
    "ray",
    "redfish",
    "salmon",
    "sandpiper",
    "sardine",
    "scallop",
    "seal",
    "shrimp",
    "skate",
    "skua",
    "smelt",
    "sole",
    "sprat",
    "squid",
    "sturgeon",
    "sunfish",
    "tern",
    "triton",
    "trout",
    "tuna",
    "turbot",
    "turtle",
    "urchin",
    "walrus",
    "wels",
    "whelk",
    "whiting",
    "wrasse",
];

/// Returns a random name such as `brave_limpet`, one of about 8,500. If `attempt` is not 0 a random
/// number of up to `attempt` digits (at most 9) is appended.
pub fn random(attempt: u32) -> String {
    let pick = |list: &[&'static str]| {
        let index = random_number() % list.len() as u64;
        list[usize::try_from(index).unwrap_or_default()]
    };
    let name = format!("{}_{}", pick(ADJECTIVES), pick(CREATURES));
    if attempt == 0 {
        name
    } else {
        format!("{name}{}", random_number() % 10u64.pow(attempt.min(9)))
    }
}

/// Returns 64 random hexadecimal digits.
pub fn random_id() -> String {
    loop {
        let mut id = String::with_capacity(64);
        for byte in random_bytes::<32>() {
            let _ = write!(id, "{byte:02x}");
        }
        // The short id is the default host name, and resolvers parse a host name of digits only as
        // an address.
        if id[..12].parse::<u64>().is_err() {
            return id;
        }
    }
}

fn random_number() -> u64 {
    u64::from_ne_bytes(random_bytes())
}

fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // getrandom(2) does not fail for up to 256 bytes once the generator is seeded.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes
}

/// Checks a container's name.
///
/// # Errors
/// Returns an error unless the name is a letter or digit followed by one or more letters, digits,
/// `_`, `.` or `-`.
pub fn check(name: &str) -> crate::error::Result<()> {
    let first = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = name.len() >= 2
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if first && rest {
        Ok(())
    } else {
        Err(crate::error::Error::invalid(format!(
            "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )))
    }
}
