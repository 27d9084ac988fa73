//! Operating systems and architectures: their names, and the normal form that containerd gives them.

const SYSTEMS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];

const ARCHITECTURES: &[&str] = &[
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "ppc64",
    "ppc64le",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

/// Returns whether a name, in normal form, is an operating system's, so that it may be a platform's specifier alone.
pub fn is_system(name: &str) -> bool {
    SYSTEMS.contains(&name)
}

/// Returns whether a name, in normal form, is an architecture's, so that it may be a platform's specifier alone.
pub fn is_architecture(name: &str) -> bool {
    ARCHITECTURES.contains(&name)
}

/// Returns the normal name of an operating system; that of Linux, if there is none.
pub fn normal_os(os: &str) -> String {
    match os.to_lowercase().as_str() {
        "" => "linux".into(),
        "macos" => "darwin".into(),
        other => other.into(),
    }
}

/// Returns the normal names of an architecture and its variant, without the variant that is its default.
pub fn normal_architecture(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = (architecture.to_lowercase(), variant.to_lowercase());
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
        ("aarch64", variant) => ("arm64", variant),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        other => other,
    };
    (architecture.to_owned(), variant.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_normal_form() {
        for (name, expected) in [("", "linux"), ("macOS", "darwin"), ("Windows", "windows")] {
            assert_eq!(normal_os(name), expected, "{name}");
            assert!(is_system(expected));
        }
        for (architecture, variant, expected) in [
            ("x86-64", "", ("amd64", "")),
            ("AMD64", "V1", ("amd64", "")),
            ("x86_64", "v3", ("amd64", "v3")),
            ("i386", "x", ("386", "")),
            ("aarch64", "8", ("arm64", "")),
            ("arm64", "9.0", ("arm64", "v9")),
            ("armel", "", ("arm", "v6")),
            ("arm", "", ("arm", "v7")),
            ("riscv64", "x", ("riscv64", "x")),
        ] {
            let (name, suffix) = normal_architecture(architecture, variant);
            assert_eq!((name.as_str(), suffix.as_str()), expected, "{architecture}");
            assert!(is_architecture(expected.0));
        }
        assert!(!is_system("amd64") && !is_architecture("linux"));
    }
}
