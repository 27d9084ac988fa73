//! Loading and attaching the device filter of a cgroup v2 (`bpf(2)`,
//! `BPF_PROG_TYPE_CGROUP_DEVICE`).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::{check, descriptor_number, owned};

/// One eBPF instruction, laid out as the kernel's `struct bpf_insn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub code: u8,
    /// Destination register in the low four bits, source register in the high four.
    pub registers: u8,
    pub offset: i16,
    pub value: i32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
const ATTACH_ALLOW_MULTI: u32 = 2;

/// Loads a device filter.
///
/// # Errors
/// Returns `EINVAL` or `EACCES` if the kernel's verifier rejects the program.
pub fn load_device_filter(program: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
    }
    let insn_cnt =
        u32::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let attr = Attr {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Attr::default()
    };
    // SAFETY: `attr` is a prefix of union bpf_attr with its size given; the program and the licence
    // outlive the call.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attr,
            size_of_val(&attr),
        )
    })?;
    // SAFETY: a fresh descriptor that nothing else owns.
    Ok(unsafe { owned(fd) })
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// Attaches a device filter to a cgroup, in addition to those that are attached already: an access
/// is allowed only if all of them allow it.
pub fn attach_device_filter(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    attach_or_detach(BPF_PROG_ATTACH, cgroup, program, ATTACH_ALLOW_MULTI)
}

/// Detaches a device filter from a cgroup.
pub fn detach_device_filter(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    attach_or_detach(BPF_PROG_DETACH, cgroup, program, 0)
}

fn attach_or_detach(
    command: libc::c_int,
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    flags: u32,
) -> io::Result<()> {
    let attr = AttachAttr {
        target_fd: descriptor_number(cgroup),
        attach_bpf_fd: descriptor_number(program),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        attach_flags: flags,
        ..AttachAttr::default()
    };
    // SAFETY: `attr` is a prefix of union bpf_attr with its size given.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attr, size_of_val(&attr)) })
        .map(drop)
}

/// Returns the device filters that are attached to the cgroup itself, at most 64.
pub fn attached_device_filters(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    const MAX_PROGRAMS: u32 = 64;
    #[repr(C)]
    #[derive(Default)]
    struct QueryAttr {
        target_fd: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
        pad: u32,
    }
    let mut ids = [0u32; MAX_PROGRAMS as usize];
    let mut attr = QueryAttr {
        target_fd: descriptor_number(cgroup),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: MAX_PROGRAMS,
        ..QueryAttr::default()
    };
    // SAFETY: `attr` is a prefix of union bpf_attr with its size given; the kernel writes at most
    // `prog_cnt` ids.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut attr,
            size_of_val(&attr),
        )
    })?;
    ids.iter()
        .take(attr.prog_cnt as usize)
        .map(|&id| program_by_id(id))
        .collect()
}

fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct IdAttr {
        id: u32,
        next_id: u32,
        open_flags: u32,
    }
    let attr = IdAttr {
        id,
        next_id: 0,
        open_flags: 0,
    };
    // SAFETY: `attr` is a prefix of union bpf_attr with its size given; the result is a fresh
    // descriptor.
    unsafe {
        let fd = check(libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_GET_FD_BY_ID,
            &raw const attr,
            size_of_val(&attr),
        ))?;
        Ok(owned(fd))
    }
}
