//! Lookup of users and groups in the container's own `/etc/passwd` and `/etc/group`.
//!
//! The files are untrusted: they are opened inside the root, read up to a size limit, and parsed
//! here. No C library lookup ever runs in a container's root (CVE-2019-14271).

use std::os::fd::AsFd;

use whelk_sys::{errno_text, in_root};

use crate::error::{Error, Result};

/// The user a process is to run as, as given by a client.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct UserRequest {
    /// `user`, `user:group`, `:group` or empty, each part a name or a number.
    pub user: String,
    /// Supplementary groups, by name or number.
    pub groups: Vec<String>,
}

/// User and group ids of a process, and its home directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// Size limit of passwd and group files in bytes (CVE-2026-47262: a 4 GB file).
const MAX_FILE_SIZE: usize = 16 << 20;

/// Largest id that is accepted: larger ones overflow where they are kept signed (CVE-2024-40635).
const MAX_ID: u64 = i32::MAX as u64;

/// Resolves a request with the files below `root`.
///
/// # Errors
/// Returns an error if a name is not found, an id is out of range, or a file cannot be read safely.
/// A missing file counts as empty.
pub fn resolve(root: impl AsFd, request: &UserRequest) -> Result<Identity> {
    let passwd = read(root.as_fd(), "/etc/passwd")?;
    let group = read(root.as_fd(), "/etc/group")?;
    lookup(&passwd, &group, request)
}

/// Returns the home directory of `uid` according to `/etc/passwd` below `root`, or `/`.
pub fn home_of(root: impl AsFd, uid: u32) -> String {
    let passwd = read(root, "/etc/passwd").unwrap_or_default();
    passwd_entries(&passwd)
        .find(|entry| entry.uid == u64::from(uid))
        .map_or("/".to_owned(), |entry| entry.home.to_owned())
}

fn read(root: impl AsFd, path: &str) -> Result<String> {
    match in_root::read_regular(root, path, MAX_FILE_SIZE) {
        Ok(content) => Ok(String::from_utf8_lossy(&content).into_owned()),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(String::new())
        }
        Err(error) => Err(Error::Os(format!(
            "read {path} in the container: {}",
            errno_text(&error)
        ))),
    }
}

struct Passwd<'a> {
    name: &'a str,
    uid: u64,
    gid: u64,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u64,
    members: &'a str,
}

fn passwd_entries(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid, _, home) = (
            fields.next()?,
            fields.next(),
            fields.next()?,
            fields.next()?,
            fields.next(),
            fields.next().unwrap_or("/"),
        );
        Some(Passwd {
            name,
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: if home.is_empty() { "/" } else { home },
        })
    })
}

fn group_entries(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid, members) = (
            fields.next()?,
            fields.next(),
            fields.next()?,
            fields.next().unwrap_or(""),
        );
        Some(Group {
            name,
            gid: gid.parse().ok()?,
            members,
        })
    })
}

fn lookup(passwd: &str, group: &str, request: &UserRequest) -> Result<Identity> {
    let (user, group_name) = request.user.split_once(':').unwrap_or((&request.user, ""));
    let user_number = number(user)?;
    // A numeric user is always a uid, even if an account has that name (CVE-2026-46680).
    let entry = passwd_entries(passwd).find(|entry| match (user.is_empty(), user_number) {
        (true, _) => entry.uid == 0,
        (_, Some(uid)) => entry.uid == uid,
        _ => entry.name == user,
    });
    let mut identity = Identity {
        home: entry.as_ref().map_or("/", |entry| entry.home).to_owned(),
        ..Identity::default()
    };
    match (&entry, user_number) {
        (Some(entry), _) => {
            (identity.uid, identity.gid) = (in_range(entry.uid)?, in_range(entry.gid)?)
        }
        (None, Some(uid)) => identity.uid = in_range(uid)?,
        (None, None) if user.is_empty() => {}
        (None, None) => {
            return Err(Error::NoSuchUser(format!(
                "unable to find user {user}: no matching entries in passwd file"
            )));
        }
    }
    if group_name.is_empty() {
        // A user's supplementary groups are read from the image's group file, also for a numeric
        // user (CVE-2022-36109).
        if let Some(entry) = &entry {
            for group in group_entries(group)
                .filter(|group| group.members.split(',').any(|member| member == entry.name))
            {
                push(&mut identity.groups, in_range(group.gid)?);
            }
        }
    } else {
        identity.gid = group_id(group, group_name)?;
    }
    for extra in &request.groups {
        let gid = group_id(group, extra)?;
        push(&mut identity.groups, gid);
    }
    // The primary group is part of the supplementary groups too, as login programs set them.
    if !identity.groups.contains(&identity.gid) {
        identity.groups.insert(0, identity.gid);
    }
    Ok(identity)
}

fn push(groups: &mut Vec<u32>, gid: u32) {
    if !groups.contains(&gid) {
        groups.push(gid);
    }
}

fn group_id(group: &str, wanted: &str) -> Result<u32> {
    if let Some(gid) = number(wanted)? {
        return in_range(gid);
    }
    let entry = group_entries(group).find(|entry| entry.name == wanted);
    entry.map_or_else(
        || {
            Err(Error::NoSuchUser(format!(
                "unable to find group {wanted}: no matching entries in group file"
            )))
        },
        |entry| in_range(entry.gid),
    )
}

/// Parses a numeric id; `None` if `text` is a name. Negative numbers are out of range rather than
/// names.
fn number(text: &str) -> Result<Option<u64>> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u64>() {
        Ok(number) => in_range(number).map(|id| Some(id.into())),
        Err(_) => Err(out_of_range()),
    }
}

fn in_range(id: u64) -> Result<u32> {
    if id > MAX_ID {
        Err(out_of_range())
    } else {
        u32::try_from(id).map_err(|_| out_of_range())
    }
}

fn out_of_range() -> Error {
    Error::NoSuchUser(format!("uids and gids must be in range 0-{MAX_ID}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken line\nweb:x:33:33::/var/www:/bin/false\n1000:x:0:0::/evil:/bin/sh\nhuge:x:4294967295:0::/:/x\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,web\nstaff:x:50:web\nhuge:x:99999999999:\n";

    fn check(
        user: &str,
        groups: &[&str],
        expected: std::result::Result<(u32, u32, &[u32], &str), &str>,
    ) {
        let request = UserRequest {
            user: user.into(),
            groups: groups.iter().map(|&g| g.to_owned()).collect(),
        };
        match (lookup(PASSWD, GROUP, &request), expected) {
            (Ok(found), Ok((uid, gid, groups, home))) => {
                assert_eq!(
                    (
                        found.uid,
                        found.gid,
                        found.groups.as_slice(),
                        found.home.as_str()
                    ),
                    (uid, gid, groups, home),
                    "{user:?}"
                );
            }
            (Err(error), Err(text)) => assert_eq!(error.to_string(), text, "{user:?}"),
            (found, expected) => panic!("{user:?}: {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn resolves_users_like_docker() {
        check("", &[], Ok((0, 0, &[0, 10], "/root")));
        check("web", &[], Ok((33, 33, &[33, 10, 50], "/var/www")));
        check("33", &[], Ok((33, 33, &[33, 10, 50], "/var/www")));
        check("web:staff", &[], Ok((33, 50, &[50], "/var/www")));
        check(":0", &[], Ok((0, 0, &[0], "/root")));
        check("root:", &[], Ok((0, 0, &[0, 10], "/root")));
        check("77", &[], Ok((77, 0, &[0], "/")));
        check(
            "77:88",
            &["wheel", "1234"],
            Ok((77, 88, &[88, 10, 1234], "/")),
        );
        check(
            "nosuch",
            &[],
            Err("unable to find user nosuch: no matching entries in passwd file"),
        );
        check(
            "0:nosuch",
            &[],
            Err("unable to find group nosuch: no matching entries in group file"),
        );
    }

    #[test]
    fn numeric_users_are_never_names_and_never_overflow() {
        check("1000", &[], Ok((1000, 0, &[0], "/")));
        for user in [
            "2147483648",
            "4294967295",
            "4294967296",
            "-1",
            "99999999999999999999",
            "0:4294967296",
            "huge",
        ] {
            check(
                user,
                &[],
                Err("uids and gids must be in range 0-2147483647"),
            );
        }
        check(
            "0x0",
            &[],
            Err("unable to find user 0x0: no matching entries in passwd file"),
        );
        check(
            "0",
            &["huge"],
            Err("uids and gids must be in range 0-2147483647"),
        );
        check("2147483647", &[], Ok((2_147_483_647, 0, &[0], "/")));
    }
}
