//! Compiles rules to classic BPF: one section per architecture, each with a binary search over the
//! system call numbers.
//!
//! ```text
//! ld arch ─► jeq x86_64 ─► ld nr ─► jge 0x40000000 (x32 section) ─► jge … ─► ret action
//!         └► jeq i386   ─► ld nr ─► jge … ─► [ld arg; jeq …] ─► ret action
//!         └► ret default
//! ```
//! Adjacent numbers with the same outcome share a leaf, so that a large profile costs about eight
//! comparisons per call.

use std::collections::BTreeMap;

use whelk_sys::seccomp::{self as sys, Instruction};

use super::syscalls::TABLE;
use super::widths;
use crate::error::{Error, Result};
use crate::spec::{Seccomp, SyscallArg};

/// A compiled filter program with its flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub program: Vec<Instruction>,
    pub flags: u32,
    /// Socket path and metadata for the notification descriptor, if a rule notifies.
    pub listener: Option<(String, String)>,
}

// Offsets into struct seccomp_data (seccomp(2)); arguments are 64 bits, low word first on
// little-endian machines.
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_NOT_LESS: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Length limit of a program (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;

/// Calls of the x32 ABI carry this bit and the x86_64 architecture number.
const X32_BIT: u32 = 0x4000_0000;

struct Architecture {
    name: &'static str,
    audit: u32,
    column: usize,
}

const X86_64: Architecture = Architecture {
    name: "SCMP_ARCH_X86_64",
    audit: 0xc000_003e,
    column: 0,
};
const X86: Architecture = Architecture {
    name: "SCMP_ARCH_X86",
    audit: 0x4000_0003,
    column: 1,
};
const X32: Architecture = Architecture {
    name: "SCMP_ARCH_X32",
    audit: 0xc000_003e,
    column: 2,
};
const AARCH64: Architecture = Architecture {
    name: "SCMP_ARCH_AARCH64",
    audit: 0xc000_00b7,
    column: 3,
};

/// The architecture this was built for, which every filter covers.
const NATIVE: &Architecture = if cfg!(target_arch = "aarch64") {
    &AARCH64
} else {
    &X86_64
};

/// Architectures whose programs cannot run on this one; they are accepted in profiles and need no
/// section.
const FOREIGN: &[&str] = &[
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
];

#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    index: usize,
    /// Number of low bits of the argument that are compared: 16, 32 or 64.
    bits: u32,
    comparison: Comparison,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    NotGreater(u64),
    Greater(u64),
    NotLess(u64),
    Masked { mask: u64, value: u64 },
}

/// The outcome for a system call: the action of the first rule whose checks all hold, otherwise
/// `otherwise`, otherwise the default action.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct Outcome {
    rules: Vec<(Vec<Check>, u32)>,
    otherwise: Option<u32>,
}

/// Compiles a seccomp configuration.
///
/// # Errors
/// Returns an error for an unknown action, operator, architecture or flag, and for a program longer
/// than the kernel accepts. Unknown system calls are skipped: profiles are written for many kernel
/// versions.
pub fn compile(seccomp: &Seccomp) -> Result<Filter> {
    let default = action(&seccomp.default_action, seccomp.default_errno_ret)?;
    let mut architectures = Vec::from([NATIVE]);
    for name in &seccomp.architectures {
        match [&X86_64, &X86, &X32, &AARCH64]
            .into_iter()
            .find(|arch| arch.name == name)
        {
            Some(arch) if !architectures.iter().any(|known| known.name == arch.name) => {
                architectures.push(arch)
            }
            Some(_) => {}
            None if FOREIGN.contains(&name.as_str()) => {}
            None => {
                return Err(Error::invalid(format!(
                    "seccomp: unknown architecture {name:?}"
                )));
            }
        }
    }
    let mut program = vec![load(OFFSET_ARCH)];
    let x32 = architectures.iter().any(|arch| arch.name == X32.name);
    for arch in architectures.iter().filter(|arch| arch.name != X32.name) {
        let mut section = vec![load(OFFSET_NR)];
        let search = search(&ranges(seccomp, arch, default)?, default);
        if arch.name == X86_64.name {
            let foreign = if x32 {
                self::search(&ranges(seccomp, &X32, default)?, default)
            } else {
                vec![ret(default)]
            };
            section.extend(branch(JUMP_NOT_LESS, X32_BIT, foreign, search));
        } else {
            section.extend(search);
        }
        program.extend(branch_if_not_equal(arch.audit, section));
    }
    program.push(ret(default));
    if program.len() > MAX_INSTRUCTIONS {
        return Err(Error::invalid(format!(
            "seccomp: the profile needs {} instructions, the kernel accepts at most {MAX_INSTRUCTIONS}",
            program.len()
        )));
    }
    let notifies = std::iter::once(&seccomp.default_action)
        .chain(seccomp.syscalls.iter().map(|rule| &rule.action))
        .any(|action| action == "SCMP_ACT_NOTIFY");
    if notifies && seccomp.listener_path.is_empty() {
        return Err(Error::invalid(
            "seccomp: SCMP_ACT_NOTIFY needs a listenerPath",
        ));
    }
    let listener = notifies.then(|| {
        (
            seccomp.listener_path.clone(),
            seccomp.listener_metadata.clone(),
        )
    });
    Ok(Filter {
        program,
        flags: flags(&seccomp.flags)? | if notifies { sys::FLAG_NEW_LISTENER } else { 0 },
        listener,
    })
}

fn action(name: &str, errno: Option<u32>) -> Result<u32> {
    const EPERM: u32 = 1;
    let data = errno.unwrap_or(EPERM) & 0xffff;
    Ok(match name {
        "SCMP_ACT_ALLOW" => 0x7fff_0000,
        "SCMP_ACT_LOG" => 0x7ffc_0000,
        "SCMP_ACT_ERRNO" => 0x0005_0000 | data,
        "SCMP_ACT_TRACE" => 0x7ff0_0000 | data,
        "SCMP_ACT_TRAP" => 0x0003_0000,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => 0x0000_0000,
        "SCMP_ACT_KILL_PROCESS" => 0x8000_0000,
        "SCMP_ACT_NOTIFY" => 0x7fc0_0000,
        _ => return Err(Error::invalid(format!("seccomp: unknown action {name:?}"))),
    })
}

fn flags(names: &[String]) -> Result<u32> {
    names.iter().try_fold(0, |flags, name| {
        Ok(flags
            | match name.as_str() {
                // TSYNC is not needed: a single thread installs the filter right before execve.
                "SECCOMP_FILTER_FLAG_TSYNC" => 0,
                "SECCOMP_FILTER_FLAG_LOG" => sys::FLAG_LOG,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => sys::FLAG_SPEC_ALLOW,
                "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => sys::FLAG_WAIT_KILLABLE_RECV,
                _ => return Err(Error::invalid(format!("seccomp: unknown flag {name:?}"))),
            })
    })
}

/// Returns the outcomes for all system call numbers as ranges: each starts at its number and
/// extends to the next.
fn ranges(seccomp: &Seccomp, arch: &Architecture, default: u32) -> Result<Vec<(u32, Outcome)>> {
    let mut by_number: BTreeMap<u32, Outcome> = BTreeMap::new();
    for rule in &seccomp.syscalls {
        let act = action(&rule.action, rule.errno_ret)?;
        let alternatives = alternatives(&rule.args)?;
        for name in &rule.names {
            let Some(number) = number(name, arch) else {
                continue;
            };
            let outcome = by_number.entry(number).or_default();
            for checks in alternatives
                .iter()
                .filter_map(|checks| narrow_checks(checks, name, arch))
            {
                if checks.is_empty() {
                    // The first unconditional rule wins, as with libseccomp.
                    outcome.otherwise.get_or_insert(act);
                } else {
                    outcome.rules.push((checks, act));
                }
            }
        }
    }
    let mut ranges: Vec<(u32, Outcome)> = vec![(0, Outcome::default())];
    let mut next = 0;
    for (number, mut outcome) in by_number {
        // Rules with the same action as when no rule matches are redundant.
        outcome
            .rules
            .retain(|(_, act)| *act != outcome.otherwise.unwrap_or(default));
        if number != next {
            push_range(&mut ranges, next, Outcome::default());
        }
        push_range(&mut ranges, number, outcome);
        next = number + 1;
    }
    push_range(&mut ranges, next, Outcome::default());
    Ok(ranges)
}

fn push_range(ranges: &mut Vec<(u32, Outcome)>, start: u32, outcome: Outcome) {
    match ranges.last_mut() {
        Some((last, same)) if *last == start => *same = outcome,
        Some((_, same)) if *same == outcome => {}
        _ => ranges.push((start, outcome)),
    }
}

fn number(name: &str, arch: &Architecture) -> Option<u32> {
    let row = TABLE
        .binary_search_by(|(known, _)| (*known).cmp(name))
        .ok()?;
    u32::try_from(TABLE[row].1[arch.column]).ok()
}

/// Returns the argument checks of a rule as alternatives, each a list of checks that must all hold.
/// By the OCI specification several checks of the same argument are alternatives, while checks of
/// different arguments must all hold.
fn alternatives(args: &[SyscallArg]) -> Result<Vec<Vec<Check>>> {
    let checks = args.iter().map(check).collect::<Result<Vec<_>>>()?;
    let repeats = checks
        .iter()
        .enumerate()
        .any(|(i, a)| checks[..i].iter().any(|b| a.index == b.index));
    Ok(if repeats {
        checks.into_iter().map(|check| vec![check]).collect()
    } else {
        vec![checks]
    })
}

/// Reduces checks to the argument width that the kernel uses for this call. Checks that always hold
/// are omitted; returns `None` if one never holds.
fn narrow_checks(checks: &[Check], call: &str, arch: &Architecture) -> Option<Vec<Check>> {
    let mut narrowed = Vec::new();
    for check in checks {
        let bits = widths::bits(call, check.index, arch.name == X86.name);
        match check.comparison.narrowed(bits) {
            Ok(comparison) => narrowed.push(Check {
                bits,
                comparison,
                ..*check
            }),
            Err(true) => {}
            Err(false) => return None,
        }
    }
    Some(narrowed)
}

impl Comparison {
    /// Returns the same comparison for an argument of `bits` bits, or its result as an error if
    /// that is the same for all arguments.
    fn narrowed(self, bits: u32) -> std::result::Result<Self, bool> {
        let all = u64::MAX >> (64 - bits);
        // Negative numbers may be sign-extended to 64 bits. 0xffffffff stands for -1, "no id", also
        // in 16 bits.
        let fits = |value: u64| {
            let extended = value | (all >> 1) == u64::MAX || value == u64::from(u32::MAX);
            (value <= all || extended).then_some(value & all)
        };
        match self {
            Self::Equal(value) => fits(value).map(Self::Equal).ok_or(false),
            Self::NotEqual(value) => fits(value).map(Self::NotEqual).ok_or(true),
            Self::Less(value) => fits(value).map(Self::Less).ok_or(true),
            Self::NotGreater(value) => fits(value).map(Self::NotGreater).ok_or(true),
            Self::Greater(value) => fits(value).map(Self::Greater).ok_or(false),
            Self::NotLess(value) => fits(value).map(Self::NotLess).ok_or(false),
            Self::Masked { mask, value } => fits(value)
                .map(|value| Self::Masked {
                    mask: mask & all,
                    value,
                })
                .ok_or(false),
        }
    }
}

fn check(arg: &SyscallArg) -> Result<Check> {
    const ARGUMENTS: usize = 6;
    if arg.index >= ARGUMENTS {
        return Err(Error::invalid(format!(
            "seccomp: argument index {} is out of range",
            arg.index
        )));
    }
    let comparison = match arg.op.as_str() {
        "SCMP_CMP_EQ" => Comparison::Equal(arg.value),
        "SCMP_CMP_NE" => Comparison::NotEqual(arg.value),
        "SCMP_CMP_LT" => Comparison::Less(arg.value),
        "SCMP_CMP_LE" => Comparison::NotGreater(arg.value),
        "SCMP_CMP_GT" => Comparison::Greater(arg.value),
        "SCMP_CMP_GE" => Comparison::NotLess(arg.value),
        "SCMP_CMP_MASKED_EQ" => Comparison::Masked {
            mask: arg.value,
            value: arg.value_two,
        },
        op => return Err(Error::invalid(format!("seccomp: unknown operator {op:?}"))),
    };
    Ok(Check {
        index: arg.index,
        bits: u64::BITS,
        comparison,
    })
}

/// Returns a binary search over `ranges`; it expects the system call number in the accumulator.
fn search(ranges: &[(u32, Outcome)], default: u32) -> Vec<Instruction> {
    match ranges {
        [] => vec![ret(default)],
        [(_, outcome)] => leaf(outcome, default),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            branch(
                JUMP_NOT_LESS,
                high[0].0,
                search(high, default),
                search(low, default),
            )
        }
    }
}

fn leaf(outcome: &Outcome, default: u32) -> Vec<Instruction> {
    let mut program = Vec::new();
    for (checks, act) in &outcome.rules {
        program.extend(all_of(checks, *act));
    }
    program.push(ret(outcome.otherwise.unwrap_or(default)));
    program
}

/// Returns `act` if all checks hold, otherwise continues after the block.
fn all_of(checks: &[Check], act: u32) -> Vec<Instruction> {
    let mut program = vec![ret(act)];
    for check in checks.iter().rev() {
        program = if_holds(check, program);
    }
    program
}

/// Runs `then` if the check holds, otherwise jumps over it. `then` always returns or runs to its
/// own end.
fn if_holds(check: &Check, then: Vec<Instruction>) -> Vec<Instruction> {
    let low = OFFSET_ARGS + 8 * u32::try_from(check.index).unwrap_or_default();
    let skip = u8::try_from(then.len()).unwrap_or(u8::MAX);
    let mut program = match check.bits {
        64 => compare_both_words(check.comparison, low, skip),
        32 => [vec![load(low)], compare_low_word(check.comparison, skip)].concat(),
        bits => [
            vec![load(low), and(u32::MAX >> (32 - bits))],
            compare_low_word(check.comparison, skip),
        ]
        .concat(),
    };
    program.extend(then);
    program
}

fn low_word(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// Compares the accumulator, which has the low word, and jumps over `skip` instructions if the
/// comparison does not hold.
fn compare_low_word(comparison: Comparison, skip: u8) -> Vec<Instruction> {
    match comparison {
        Comparison::Equal(value) => vec![jump(JUMP_EQUAL, low_word(value), 0, skip)],
        Comparison::NotEqual(value) => vec![jump(JUMP_EQUAL, low_word(value), skip, 0)],
        Comparison::Masked { mask, value } => {
            vec![
                and(low_word(mask)),
                jump(JUMP_EQUAL, low_word(value), 0, skip),
            ]
        }
        Comparison::Greater(value) => vec![jump(JUMP_GREATER, low_word(value), 0, skip)],
        Comparison::NotLess(value) => vec![jump(JUMP_NOT_LESS, low_word(value), 0, skip)],
        Comparison::Less(value) => vec![jump(JUMP_NOT_LESS, low_word(value), skip, 0)],
        Comparison::NotGreater(value) => vec![jump(JUMP_GREATER, low_word(value), skip, 0)],
    }
}

/// Like [`compare_low_word`] for the whole argument, whose low word is at offset `low` and whose
/// high word follows.
fn compare_both_words(comparison: Comparison, low: u32, skip: u8) -> Vec<Instruction> {
    let test = compare_low_word(comparison, skip);
    let high = |value: u64| (value >> 32) as u32;
    // Jump distances from the end of the high word's part: to `then`, and to the instruction after
    // it.
    let held = u8::try_from(test.len() + 1).unwrap_or(u8::MAX);
    let failed = held + skip;
    let mut program = vec![load(low + 4)];
    program.extend(match comparison {
        Comparison::Equal(value) => vec![jump(JUMP_EQUAL, high(value), 0, failed)],
        Comparison::NotEqual(value) => vec![jump(JUMP_EQUAL, high(value), 0, held)],
        Comparison::Masked { mask, value } => {
            vec![and(high(mask)), jump(JUMP_EQUAL, high(value), 0, failed)]
        }
        // A greater high word decides; an equal one leaves it to the low word.
        Comparison::Greater(value) | Comparison::NotLess(value) => {
            vec![
                jump(JUMP_GREATER, high(value), held + 1, 0),
                jump(JUMP_EQUAL, high(value), 0, failed),
            ]
        }
        Comparison::Less(value) | Comparison::NotGreater(value) => {
            vec![
                jump(JUMP_GREATER, high(value), failed + 1, 0),
                jump(JUMP_EQUAL, high(value), 0, held),
            ]
        }
    });
    program.push(load(low));
    program.extend(test);
    program
}

/// `if accumulator OP value { yes } else { no }`. Conditional jumps have 8-bit distances; a longer
/// one uses an unconditional jump.
fn branch(op: u16, value: u32, yes: Vec<Instruction>, no: Vec<Instruction>) -> Vec<Instruction> {
    let mut program = match u8::try_from(no.len()) {
        Ok(distance) => vec![jump(op, value, distance, 0)],
        Err(_) => vec![jump(op, value, 0, 1), long_jump(no.len())],
    };
    program.extend(no);
    program.extend(yes);
    program
}

/// Runs `section` if the accumulator equals `value`, otherwise continues after it.
fn branch_if_not_equal(value: u32, section: Vec<Instruction>) -> Vec<Instruction> {
    let mut program = vec![jump(JUMP_EQUAL, value, 1, 0), long_jump(section.len())];
    program.extend(section);
    program
}

fn load(offset: u32) -> Instruction {
    Instruction {
        code: LOAD,
        jump_true: 0,
        jump_false: 0,
        value: offset,
    }
}

fn and(mask: u32) -> Instruction {
    Instruction {
        code: AND,
        jump_true: 0,
        jump_false: 0,
        value: mask,
    }
}

fn ret(action: u32) -> Instruction {
    Instruction {
        code: RETURN,
        jump_true: 0,
        jump_false: 0,
        value: action,
    }
}

fn jump(code: u16, value: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction {
        code,
        jump_true,
        jump_false,
        value,
    }
}

fn long_jump(distance: usize) -> Instruction {
    Instruction {
        code: JUMP,
        jump_true: 0,
        jump_false: 0,
        value: u32::try_from(distance).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::super::profile::{default_profile, from_json};
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;
    const ENOSYS: u32 = 0x0005_0026;

    /// Interprets a program and returns its action.
    fn run(program: &[Instruction], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
        let mut data = [0u8; 64];
        data[0..4].copy_from_slice(&nr.to_le_bytes());
        data[4..8].copy_from_slice(&arch.to_le_bytes());
        for (i, arg) in args.iter().enumerate() {
            data[16 + 8 * i..24 + 8 * i].copy_from_slice(&arg.to_le_bytes());
        }
        let (mut pc, mut acc) = (0usize, 0u32);
        loop {
            let i = program[pc];
            pc += 1;
            let take = |yes: bool| usize::from(if yes { i.jump_true } else { i.jump_false });
            match i.code {
                LOAD => {
                    acc = u32::from_le_bytes(
                        data[i.value as usize..i.value as usize + 4]
                            .try_into()
                            .unwrap(),
                    )
                }
                AND => acc &= i.value,
                JUMP => pc += i.value as usize,
                JUMP_EQUAL => pc += take(acc == i.value),
                JUMP_GREATER => pc += take(acc > i.value),
                JUMP_NOT_LESS => pc += take(acc >= i.value),
                RETURN => return i.value,
                code => panic!("unknown code {code:#x}"),
            }
        }
    }

    fn call(filter: &Filter, name: &str, args: [u64; 6]) -> u32 {
        run(
            &filter.program,
            X86_64.audit,
            number(name, &X86_64).unwrap(),
            args,
        )
    }

    #[test]
    fn the_table_is_sorted() {
        assert!(TABLE.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn the_default_profile_decides_as_documented() {
        let filter = compile(&default_profile::<&str>(&[])).unwrap();
        assert!(
            filter.program.len() < 1500,
            "{} instructions",
            filter.program.len()
        );
        assert_eq!(call(&filter, "read", [0; 6]), ALLOW);
        assert_eq!(call(&filter, "mount", [0; 6]), EPERM);
        assert_eq!(call(&filter, "clone3", [0; 6]), ENOSYS);
        assert_eq!(call(&filter, "clone", [0x11, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(
            call(&filter, "clone", [0x1000_0000, 0, 0, 0, 0, 0]),
            EPERM,
            "a new user namespace"
        );
        for (family, expected) in [
            (2, ALLOW),
            (38, EPERM),
            (39, ALLOW),
            (40, EPERM),
            (41, ALLOW),
        ] {
            // The kernel uses the low 32 bits (int), whatever the upper half of the register holds.
            for above in [0, 1 << 32, u64::MAX << 32] {
                assert_eq!(
                    call(&filter, "socket", [family | above, 0, 0, 0, 0, 0]),
                    expected,
                    "family {family} | {above:#x}"
                );
            }
        }
        assert_eq!(
            run(
                &filter.program,
                X86.audit,
                number("socketcall", &X86).unwrap(),
                [1; 6]
            ),
            ENOSYS,
            "hides the family"
        );
        for (domain, expected) in [
            (0, ALLOW),
            (8, ALLOW),
            (9, EPERM),
            (0xffff_ffff, ALLOW),
            (1 << 32 | 9, EPERM),
        ] {
            assert_eq!(
                call(&filter, "personality", [domain, 0, 0, 0, 0, 0]),
                expected,
                "domain {domain:#x}"
            );
        }
        assert_eq!(
            run(&filter.program, 0x1234, 0, [0; 6]),
            EPERM,
            "a foreign architecture"
        );
        assert_eq!(
            run(
                &filter.program,
                X86.audit,
                number("mount", &X86).unwrap(),
                [0; 6]
            ),
            EPERM
        );
        assert_eq!(
            run(
                &filter.program,
                X32.audit,
                number("read", &X32).unwrap(),
                [0; 6]
            ),
            ALLOW
        );
        assert_eq!(
            run(&filter.program, X32.audit, X32_BIT | 100_000, [0; 6]),
            EPERM
        );
    }

    #[test]
    fn capabilities_allow_their_calls() {
        let filter = compile(&default_profile(&["CAP_SYS_ADMIN"])).unwrap();
        assert_eq!(call(&filter, "mount", [0; 6]), ALLOW);
        assert_eq!(call(&filter, "clone3", [0; 6]), ALLOW);
        assert_eq!(call(&filter, "reboot", [0; 6]), EPERM);
    }

    /// Compares the compiled search with the rules for every call on every architecture.
    #[test]
    fn the_compiled_search_agrees_with_the_rules() {
        let profile = default_profile(&["CAP_SYS_PTRACE"]);
        let filter = compile(&profile).unwrap();
        for arch in [&X86_64, &X86, &X32] {
            for (name, numbers) in TABLE {
                let Ok(nr) = u32::try_from(numbers[arch.column]) else {
                    continue;
                };
                let named = |rule: &&crate::spec::Syscall| rule.names.iter().any(|n| n == name);
                let Some(rule) = profile.syscalls.iter().find(named) else {
                    assert_eq!(
                        run(&filter.program, arch.audit, nr, [0; 6]),
                        EPERM,
                        "{name}"
                    );
                    continue;
                };
                if rule.args.is_empty() {
                    assert_eq!(
                        run(&filter.program, arch.audit, nr, [0; 6]),
                        action(&rule.action, rule.errno_ret).unwrap(),
                        "{name}"
                    );
                }
            }
        }
    }

    /// Whether a call is allowed by a rule that compares its second argument, which is `arg`, with
    /// `value` (and `two`).
    fn holds(name: &str, op: &str, value: u64, two: u64, arg: u64) -> bool {
        let text = format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["{name}"],"action":"SCMP_ACT_ALLOW","args":[{{"index":1,"value":{value},"valueTwo":{two},"op":"SCMP_CMP_{op}"}}]}}]}}"#
        );
        let filter = compile(&from_json::<&str>(&text, &[]).unwrap()).unwrap();
        call(&filter, name, [0, arg, 0, 0, 0, 0]) == ALLOW
    }

    #[test]
    fn compares_all_bits_of_64_bit_arguments() {
        let cases: &[(&str, u64, u64, bool)] = &[
            ("EQ", 1 << 32, 1 << 32, true),
            ("EQ", 1 << 32, 0, false),
            ("EQ", 5, 5 | 1 << 32, false),
            ("NE", 5, 5 | 1 << 32, true),
            ("NE", 5, 5, false),
            ("LT", 1 << 32, 0xffff_ffff, true),
            ("LT", 1 << 32, 1 << 32, false),
            ("LT", 1 << 32, 1 << 33, false),
            ("LE", 1 << 32, 1 << 32, true),
            ("LE", 1 << 32, (1 << 32) + 1, false),
            ("GT", 0xffff_ffff, 1 << 32, true),
            ("GT", 1 << 33, 1 << 32, false),
            ("GE", 1 << 32, 1 << 32, true),
            ("GE", 1 << 32, 7, false),
        ];
        for &(op, value, arg, expected) in cases {
            assert_eq!(
                holds("read", op, value, 0, arg),
                expected,
                "{arg:#x} {op} {value:#x}"
            );
        }
        assert!(holds(
            "read",
            "MASKED_EQ",
            0xff << 32,
            7 << 32,
            0xf07 << 32 | 1
        ));
        assert!(!holds(
            "read",
            "MASKED_EQ",
            0xff << 32 | 1,
            7 << 32,
            7 << 32 | 1
        ));
    }

    /// The command of `ioctl` is an unsigned int, the mode of `chmod` a short.
    #[test]
    fn ignores_upper_bits_of_narrow_arguments() {
        const ABOVE: u64 = 0xdead_beef << 32;
        let minus = i64::cast_unsigned;
        let cases: &[(&str, u64, u64, bool)] = &[
            ("EQ", 0x5412, 0x5412, true),
            ("EQ", 0x5412, 0x5413, false),
            ("NE", 0x5412, 0x5412, false),
            ("NE", 0x5412, 0x5413, true),
            ("LT", 7, 6, true),
            ("LT", 7, 7, false),
            ("LE", 7, 7, true),
            ("LE", 7, 8, false),
            ("GT", 7, 8, true),
            ("GT", 7, 7, false),
            ("GE", 7, 7, true),
            ("GE", 7, 6, false),
            // A negative number as profiles write it, and limits outside the range of int.
            ("EQ", minus(-100), 0xffff_ff9c, true),
            ("EQ", 1 << 32 | 5, 5, false),
            ("NE", 1 << 32 | 5, 5, true),
            ("LT", 1 << 32, 0xffff_ffff, true),
            ("LE", 1 << 32, 0xffff_ffff, true),
            ("GT", 1 << 32, 0xffff_ffff, false),
            ("GE", 1 << 32, 0xffff_ffff, false),
        ];
        for &(op, value, arg, expected) in cases {
            for arg in [arg, arg | ABOVE] {
                assert_eq!(
                    holds("ioctl", op, value, 0, arg),
                    expected,
                    "{arg:#x} {op} {value:#x}"
                );
            }
        }
        for arg in [0x30, 0x30 | ABOVE] {
            assert!(
                holds("ioctl", "MASKED_EQ", minus(-16), 0x30, arg)
                    && !holds("ioctl", "MASKED_EQ", 0xff, 0x31, arg)
            );
        }
        for mode in [0o4755, 0o4755 | 0xf0000, 0o4755 | ABOVE] {
            assert!(
                holds("chmod", "EQ", 0o4755, 0, mode) && !holds("chmod", "NE", 0o4755, 0, mode),
                "{mode:#x}"
            );
            assert!(
                holds("chmod", "MASKED_EQ", 0o4000, 0o4000, mode)
                    && holds("chmod", "LT", 0o10000, 0, mode),
                "{mode:#x}"
            );
        }
    }

    /// On i386 the ids of `setuid` and similar calls have 16 bits, those of `setuid32` and similar
    /// 32.
    #[test]
    fn compares_16_bit_ids_of_i386_calls() {
        let compare = |name: &str, op: &str, value: u64, id: u64| {
            let text = format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86"],"syscalls":[{{"names":["{name}"],"action":"SCMP_ACT_ALLOW","args":[{{"index":0,"value":{value},"op":"SCMP_CMP_{op}"}}]}}]}}"#
            );
            let filter = compile(&from_json::<&str>(&text, &[]).unwrap()).unwrap();
            let of = |arch: &Architecture| {
                run(
                    &filter.program,
                    arch.audit,
                    number(name, arch).unwrap(),
                    [id, 0, 0, 0, 0, 0],
                ) == ALLOW
            };
            (of(&X86), number(name, &X86_64).map(|_| of(&X86_64)))
        };
        for name in ["setuid", "setgid", "setreuid", "setresgid", "setfsuid"] {
            assert_eq!(
                compare(name, "NE", 0, 0x10000),
                (false, Some(true)),
                "{name}"
            );
            assert_eq!(
                compare(name, "EQ", 1000, 0x10000 | 1000),
                (true, Some(false)),
                "{name}"
            );
            assert_eq!(
                compare(name, "EQ", u64::from(u32::MAX), 0xffff),
                (true, Some(false)),
                "{name}: no id"
            );
        }
        assert_eq!(compare("setuid32", "NE", 0, 0x10000), (true, None));
    }

    #[test]
    fn rejects_unknown_names_operators_and_argument_indices() {
        for (text, expected) in [
            (
                r#"{"defaultAction":"SCMP_ACT_NAP"}"#,
                "seccomp: unknown action \"SCMP_ACT_NAP\"",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_PDP11"]}"#,
                "seccomp: unknown architecture \"SCMP_ARCH_PDP11\"",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["FAST"]}"#,
                "seccomp: unknown flag \"FAST\"",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":9,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#,
                "seccomp: argument index 9 is out of range",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":1,"op":"SCMP_CMP_LIKE"}]}]}"#,
                "seccomp: unknown operator \"SCMP_CMP_LIKE\"",
            ),
        ] {
            let profile = from_json::<&str>(text, &[]).unwrap();
            let error = compile(&profile).unwrap_err();
            assert_eq!(error.to_string(), expected, "{text}");
        }
    }
}
