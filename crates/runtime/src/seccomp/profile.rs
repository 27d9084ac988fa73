//! Docker's seccomp profile format: the OCI format with conditions on capabilities, architecture
//! and kernel version.

use serde::Deserialize;

use super::default::{ALWAYS, CLONE_NAMESPACES, ON_ARCHITECTURE, WITH_ARGUMENT, WITH_CAPABILITY};
use crate::error::{Error, Result};
use crate::spec::{Seccomp, Syscall, SyscallArg};

/// The architecture this was built for, by its Go name as profiles use it.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};
/// The same by its libseccomp name, with the other architectures whose programs its kernel runs.
const NATIVE: &[&str] = if cfg!(target_arch = "aarch64") {
    &["SCMP_ARCH_AARCH64"]
} else {
    &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Returns the built-in profile for a container with `capabilities` (names with `CAP_`).
pub fn default_profile<S: AsRef<str>>(capabilities: &[S]) -> Seccomp {
    let holds = |name: &str| {
        capabilities
            .iter()
            .any(|capability| capability.as_ref() == name)
    };
    let allow = |names: &[&str], args: Vec<SyscallArg>| Syscall {
        names: names.iter().map(|&name| name.to_owned()).collect(),
        action: "SCMP_ACT_ALLOW".into(),
        errno_ret: None,
        args,
    };
    let missing = |name: &str| Syscall {
        names: vec![name.to_owned()],
        action: "SCMP_ACT_ERRNO".into(),
        errno_ret: Some(ENOSYS),
        args: Vec::new(),
    };
    let mut syscalls = vec![allow(ALWAYS, Vec::new())];
    syscalls.extend(WITH_ARGUMENT.iter().map(|&(name, index, op, value)| {
        allow(
            &[name],
            vec![SyscallArg {
                index,
                value,
                value_two: 0,
                op: op.into(),
            }],
        )
    }));
    syscalls.extend(
        ON_ARCHITECTURE
            .iter()
            .filter(|(architecture, _)| *architecture == ARCHITECTURE)
            .map(|(_, names)| allow(names, Vec::new())),
    );
    syscalls.extend(
        WITH_CAPABILITY
            .iter()
            .filter(|(capability, _)| holds(capability))
            .map(|(_, names)| allow(names, Vec::new())),
    );
    if !holds("CAP_SYS_ADMIN") {
        let no_namespaces = SyscallArg {
            index: 0,
            value: CLONE_NAMESPACES,
            value_two: 0,
            op: "SCMP_CMP_MASKED_EQ".into(),
        };
        syscalls.push(allow(&["clone"], vec![no_namespaces]));
        // clone3 passes its flags by pointer, which a filter cannot read. ENOSYS makes callers fall
        // back to clone.
        syscalls.push(missing("clone3"));
    }
    // Likewise the address family of socketcall, with which 32-bit programs could create the
    // sockets that `socket` is denied for.
    syscalls.push(missing("socketcall"));
    Seccomp {
        default_action: "SCMP_ACT_ERRNO".into(),
        default_errno_ret: Some(EPERM),
        architectures: NATIVE.iter().map(|&name| name.to_owned()).collect(),
        syscalls,
        ..Seccomp::default()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchitectureMap>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    listener_path: String,
    #[serde(default)]
    listener_metadata: String,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchitectureMap {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<RuleArg>>,
    #[serde(default)]
    includes: Option<Condition>,
    #[serde(default)]
    excludes: Option<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleArg {
    index: usize,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    caps: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// Parses a profile in Docker's JSON format for a container with `capabilities`.
///
/// # Errors
/// Returns an error if the JSON is malformed, or if it has both `name` and `names` or both
/// `architectures` and `archMap`.
pub fn from_json<S: AsRef<str>>(text: &str, capabilities: &[S]) -> Result<Seccomp> {
    let profile: Profile = serde_json::from_str(text)
        .map_err(|error| Error::invalid(format!("decoding seccomp profile failed: {error}")))?;
    let mut architectures = profile.architectures.unwrap_or_default();
    if let Some(map) = profile.arch_map.filter(|map| !map.is_empty()) {
        if !architectures.is_empty() {
            return Err(Error::invalid(
                "seccomp profile: use either 'architectures' or 'archMap'",
            ));
        }
        for entry in map
            .into_iter()
            .filter(|entry| NATIVE.first() == Some(&entry.architecture.as_str()))
        {
            architectures.push(entry.architecture);
            architectures.extend(entry.sub_architectures.unwrap_or_default());
        }
    }
    let mut syscalls = Vec::new();
    for rule in profile.syscalls.unwrap_or_default() {
        let mut names = rule.names.unwrap_or_default();
        if !rule.name.is_empty() {
            if !names.is_empty() {
                return Err(Error::invalid(
                    "seccomp profile: use either 'name' or 'names'",
                ));
            }
            names.push(rule.name);
        }
        let includes = rule.includes.unwrap_or_default();
        if !includes.all_hold(capabilities)?
            || rule
                .excludes
                .is_some_and(|excludes| excludes.any_holds(capabilities))
        {
            continue;
        }
        let args = rule.args.unwrap_or_default().into_iter();
        let args = args
            .map(|arg| SyscallArg {
                index: arg.index,
                value: arg.value,
                value_two: arg.value_two,
                op: arg.op,
            })
            .collect();
        syscalls.push(Syscall {
            names,
            action: rule.action,
            errno_ret: rule.errno_ret,
            args,
        });
    }
    Ok(Seccomp {
        default_action: profile.default_action,
        default_errno_ret: profile.default_errno_ret,
        architectures,
        flags: profile.flags.unwrap_or_default(),
        listener_path: profile.listener_path,
        listener_metadata: profile.listener_metadata,
        syscalls,
    })
}

impl Condition {
    fn all_hold<S: AsRef<str>>(&self, capabilities: &[S]) -> Result<bool> {
        let arch = self.arches.as_ref().is_none_or(|arches| {
            arches.is_empty() || arches.iter().any(|arch| arch == ARCHITECTURE)
        });
        let caps = self
            .caps
            .iter()
            .flatten()
            .all(|name| capabilities.iter().any(|held| held.as_ref() == name));
        let kernel = match &self.min_kernel {
            Some(least) => {
                version(&rustix::system::uname().release().to_string_lossy())
                    >= Some(version(least).ok_or_else(|| {
                        Error::invalid(format!("seccomp profile: invalid minKernel {least:?}"))
                    })?)
            }
            None => true,
        };
        Ok(arch && caps && kernel)
    }

    fn any_holds<S: AsRef<str>>(&self, capabilities: &[S]) -> bool {
        self.arches
            .iter()
            .flatten()
            .any(|arch| arch == ARCHITECTURE)
            || self
                .caps
                .iter()
                .flatten()
                .any(|name| capabilities.iter().any(|held| held.as_ref() == name))
    }
}

/// Returns the major and minor version of a kernel release such as `6.1.0-13-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selects_rules_by_their_conditions() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],"syscalls":[
            {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38,"excludes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
            {"names":["future"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"99.0"}}]}"#;
        let names = |caps: &[&str]| {
            from_json(text, caps)
                .expect("parses")
                .syscalls
                .into_iter()
                .flat_map(|s| s.names)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["clone3", "ptrace"]);
        assert_eq!(names(&["CAP_SYS_ADMIN"]), ["mount", "ptrace"]);
    }

    #[test]
    fn rejects_malformed_profiles() {
        for (text, expected) in [
            (
                "",
                "decoding seccomp profile failed: EOF while parsing a value at line 1 column 0",
            ),
            (
                "{",
                "decoding seccomp profile failed: EOF while parsing an object at line 1 column 1",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","names":["b"],"action":"SCMP_ACT_ALLOW"}]}"#,
                "seccomp profile: use either 'name' or 'names'",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["A"],"archMap":[{"architecture":"B"}]}"#,
                "seccomp profile: use either 'architectures' or 'archMap'",
            ),
        ] {
            let error = from_json::<&str>(text, &[]).unwrap_err();
            assert_eq!(error.to_string(), expected, "{text}");
        }
    }

    #[test]
    fn kernel_versions_compare_as_numbers() {
        assert!(version("6.1.0-13-amd64") > version("5.19"));
        assert_eq!(version("x"), None);
    }
}
