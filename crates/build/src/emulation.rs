//! Platforms whose programs this host executes: its own, and those that a handler of binfmt_misc executes, such as QEMU.
//!
//! The kernel opens the program of a handler with the flag `F` when it is registered, so that it need not be in the
//! containers that it is used in. Without the flag it is looked up in each container, where it is not.

use std::path::Path;

use whelk_image::Platform;
use whelk_llb::pb;
use whelk_sys::fs;

use crate::error::{Error, Result};

/// Where the kernel lists the handlers.
const HANDLERS: &str = "/proc/sys/fs/binfmt_misc";
/// Maximum size of a handler's description in bytes.
const MAX_HANDLER: u64 = 16 << 10;

/// Length of the part of an ELF header that handlers look at.
const HEADER: usize = 20;

/// The architectures of Linux by their ELF class (1 or 2), byte order (1 or 2, the larger ends first) and machine number.
const ARCHITECTURES: &[(&str, u8, u8, u16)] = &[
    ("386", 1, 1, 3),
    ("amd64", 2, 1, 62),
    ("arm", 1, 1, 40),
    ("arm64", 2, 1, 183),
    ("loong64", 2, 1, 258),
    ("mips64", 2, 2, 8),
    ("mips64le", 2, 1, 8),
    ("ppc64le", 2, 1, 21),
    ("riscv64", 2, 1, 243),
    ("s390x", 2, 2, 22),
];

/// A handler that is registered with the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Handler {
    name: String,
    is_fixed: bool,
    offset: usize,
    magic: Vec<u8>,
    mask: Vec<u8>,
}

impl Handler {
    /// Reads a description as the kernel writes it; `None` for a handler that is disabled, or of file names.
    fn parse(name: &str, text: &str) -> Option<Self> {
        let mut handler = Self {
            name: name.to_owned(),
            is_fixed: false,
            offset: 0,
            magic: Vec::new(),
            mask: Vec::new(),
        };
        let mut lines = text.lines();
        if lines.next() != Some("enabled") {
            return None;
        }
        for line in lines {
            match line.split_once(' ')? {
                ("flags:", flags) => handler.is_fixed = flags.contains('F'),
                ("offset", offset) => handler.offset = offset.parse().ok()?,
                ("magic", digits) => handler.magic = bytes(digits)?,
                ("mask", digits) => handler.mask = bytes(digits)?,
                _ => {}
            }
        }
        (!handler.magic.is_empty()).then_some(handler)
    }

    fn handles(&self, header: &[u8]) -> bool {
        // A handler may look at more of a program than its header says.
        let known = header.iter().skip(self.offset);
        let wanted = self.magic.iter().enumerate();
        let mut pairs = known.zip(wanted);
        self.offset < HEADER
            && pairs.all(|(byte, (at, magic))| {
                let mask = self.mask.get(at).copied().unwrap_or(0xff);
                (byte ^ magic) & mask == 0
            })
    }
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.trim();
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return None;
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok())
        .collect()
}

/// Returns the beginning of a program for an architecture.
fn header(class: u8, order: u8, machine: u16) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, order, 1]);
    let (kind, machine) = match order {
        2 => (2_u16.to_be_bytes(), machine.to_be_bytes()),
        _ => (2_u16.to_le_bytes(), machine.to_le_bytes()),
    };
    header[16..18].copy_from_slice(&kind);
    header[18..].copy_from_slice(&machine);
    header
}

/// Returns the handlers that are registered now; none where binfmt_misc is not mounted.
fn handlers(place: &Path) -> Vec<Handler> {
    let Ok(entries) = fs::list(place) else {
        return Vec::new();
    };
    let names = entries.into_iter().map(|entry| entry.file_name());
    let names = names.filter(|name| name != "register" && name != "status");
    let read = names.filter_map(|name| {
        let bytes = fs::read_at_most(place.join(&name), MAX_HANDLER).ok()?;
        Handler::parse(&name.to_string_lossy(), &String::from_utf8_lossy(&bytes))
    });
    read.collect()
}

/// Returns the platform of the host.
pub fn host() -> pb::Platform {
    let host = Platform::host();
    pb::Platform::new(&host.os, &host.architecture, &host.variant)
}

/// Returns whether the processor executes programs for a platform.
fn is_native(platform: &pb::Platform) -> bool {
    let host = Platform::host();
    let other = platform.normalized();
    other.os == host.os
        && match (host.architecture.as_str(), other.architecture.as_str()) {
            // The kernel has to be built for 32-bit programs.
            ("amd64", "386") => fs::exists("/proc/sys/abi/vsyscall32"),
            ("arm64", "arm") => true,
            (host, other) => host == other,
        }
}

/// Returns how programs for a platform are executed: `None` if they are not.
fn handler<'a>(platform: &pb::Platform, handlers: &'a [Handler]) -> Option<&'a Handler> {
    let wanted = platform.normalized();
    if wanted.os != Platform::host().os {
        return None;
    }
    let mut known = ARCHITECTURES.iter();
    let (_, class, order, machine) = known.find(|(name, ..)| *name == wanted.architecture)?;
    let header = header(*class, *order, *machine);
    let mut suitable = handlers.iter().filter(|handler| handler.handles(&header));
    let first = suitable.next();
    match first {
        Some(first) if !first.is_fixed => suitable.find(|other| other.is_fixed).or(Some(first)),
        first => first,
    }
}

/// Returns the platforms whose programs can be executed, that of the host first.
pub fn platforms() -> Vec<pb::Platform> {
    let host = Platform::host();
    let mut found = vec![pb::Platform::new(
        &host.os,
        &host.architecture,
        &host.variant,
    )];
    let levels = Platform::levels().iter();
    found.extend(levels.map(|level| pb::Platform::new(&host.os, &host.architecture, level)));
    let handlers = handlers(Path::new(HANDLERS));
    for (architecture, ..) in ARCHITECTURES {
        let variants: &[&str] = if *architecture == "arm" {
            &["v7", "v6"]
        } else {
            &[""]
        };
        for variant in variants {
            let platform = pb::Platform::new("linux", architecture, variant);
            let is_emulated = || handler(&platform, &handlers).is_some_and(|one| one.is_fixed);
            if *architecture != host.architecture && (is_native(&platform) || is_emulated()) {
                found.push(platform);
            }
        }
    }
    found
}

/// Refuses a process whose programs cannot be executed. `name` is that of its step.
pub(crate) fn check(platform: Option<&pb::Platform>, name: &str) -> Result<()> {
    match platform {
        Some(platform) if !is_native(platform) => {
            let refused = refusal(platform, name, &handlers(Path::new(HANDLERS)));
            refused.map_or(Ok(()), |text| Err(Error::invalid(text)))
        }
        _ => Ok(()),
    }
}

/// Returns why a process for a foreign platform cannot be executed.
fn refusal(platform: &pb::Platform, name: &str, handlers: &[Handler]) -> Option<String> {
    let found = handler(platform, handlers);
    if found.is_some_and(|handler| handler.is_fixed) {
        return None;
    }
    let specifier = platform.normalized().specifier();
    let host = Platform::host();
    let why = match found {
        Some(handler) => format!(
            "the handler {} of binfmt_misc is registered without the flag F, which lets it work in containers",
            handler.name
        ),
        None => "no handler of binfmt_misc is registered for them".to_owned(),
    };
    Some(format!(
        "{name} executes programs for {specifier}, which this host ({host}) cannot: {why}. Install one on the host, such as Debian's packages qemu-user-static and binfmt-support, or compile in a stage for the host's platform (FROM --platform=$BUILDPLATFORM)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Debian registers it.
    const ARM64: &str = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POCF\noffset 0\nmagic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";

    fn parsed(text: &str) -> Vec<Handler> {
        Handler::parse("qemu-aarch64", text).into_iter().collect()
    }

    fn platform(architecture: &str) -> pb::Platform {
        pb::Platform::new("linux", architecture, "")
    }

    #[test]
    fn a_handler_is_found_by_the_programs_that_it_handles() {
        let handlers = parsed(ARM64);
        let found = |name: &str| handler(&platform(name), &handlers).is_some();
        assert!(found("arm64") && found("aarch64"));
        for other in ["arm", "riscv64", "s390x", "ppc64le", "amd64", "unknown"] {
            assert!(!found(other), "{other}");
        }
        let windows = pb::Platform::new("windows", "arm64", "");
        assert!(handler(&windows, &handlers).is_none());
        for text in [
            ARM64.replace("enabled", "disabled"),
            "enabled\ninterpreter /bin/x\nflags: \nextension .jar\n".to_owned(),
            ARM64.replace("7f45", "7f4"),
            ARM64.replace("7f45", "\u{e9}x"),
            String::new(),
        ] {
            assert_eq!(parsed(&text), [], "{text}");
        }
        let far = parsed(&ARM64.replace("offset 0", "offset 99999"));
        assert!(handler(&platform("arm64"), &far).is_none());
    }

    #[test]
    fn what_cannot_be_executed_is_refused_by_name() {
        let step = "[linux/arm64 2/3] RUN make";
        assert_eq!(refusal(&platform("arm64"), step, &parsed(ARM64)), None);
        let none = refusal(&platform("arm64"), step, &[]).unwrap_or_default();
        for part in [step, "for linux/arm64,", "no handler", "qemu-user-static"] {
            assert!(none.contains(part), "{none}");
        }
        let loose = parsed(&ARM64.replace("POCF", "POC"));
        let text = refusal(&platform("arm64"), step, &loose).unwrap_or_default();
        assert!(text.contains("qemu-aarch64 of binfmt_misc is registered without the flag F"));
    }

    #[test]
    fn the_host_is_the_first_platform() {
        let found = platforms();
        assert_eq!(found[0].architecture, Platform::host().architecture);
        assert!(check(Some(&found[0]), "a step").is_ok() && check(None, "a step").is_ok());
    }
}
