//! Device access rules: lines for the files of cgroup v1, an eBPF program for v2.

use whelk_sys::bpf::Instruction;

use crate::spec::{DeviceKind, DeviceRule};

/// Device rules of every container as (kind, major, minor, access); `None` matches any number. All
/// devices may be created, but only these may be opened: null, zero, full, random, urandom, tty,
/// console, ptmx and pseudo-terminals.
const DEFAULT_RULES: &[(DeviceKind, Option<i64>, Option<i64>, &str)] = &[
    (DeviceKind::Char, None, None, "m"),
    (DeviceKind::Block, None, None, "m"),
    (DeviceKind::Char, Some(1), Some(3), "rwm"),
    (DeviceKind::Char, Some(1), Some(5), "rwm"),
    (DeviceKind::Char, Some(1), Some(7), "rwm"),
    (DeviceKind::Char, Some(1), Some(8), "rwm"),
    (DeviceKind::Char, Some(1), Some(9), "rwm"),
    (DeviceKind::Char, Some(5), Some(0), "rwm"),
    (DeviceKind::Char, Some(5), Some(1), "rwm"),
    (DeviceKind::Char, Some(5), Some(2), "rwm"),
    (DeviceKind::Char, Some(136), None, "rwm"),
];

/// Returns the device rules that allow every container what it may do with devices.
pub fn default_rules() -> impl Iterator<Item = DeviceRule> {
    DEFAULT_RULES
        .iter()
        .map(|&(kind, major, minor, access)| DeviceRule {
            allow: true,
            kind: Some(kind),
            major,
            minor,
            access: access.into(),
        })
}

/// Returns the file to write to and its content for each rule, in order.
pub(super) fn v1_lines(rules: &[DeviceRule]) -> impl Iterator<Item = (&'static str, String)> {
    rules.iter().map(|rule| {
        let file = if rule.allow {
            "devices.allow"
        } else {
            "devices.deny"
        };
        let kind = rule.kind.unwrap_or(DeviceKind::All);
        if kind == DeviceKind::All && rule.major.is_none() && rule.minor.is_none() {
            return (file, "a".to_owned());
        }
        let number = |n: Option<i64>| {
            n.filter(|n| *n >= 0)
                .map_or("*".to_owned(), |n| n.to_string())
        };
        (
            file,
            format!(
                "{} {}:{} {}",
                kind.letter(),
                number(rule.major),
                number(rule.minor),
                access(rule)
            ),
        )
    })
}

fn access(rule: &DeviceRule) -> &str {
    if rule.access.is_empty() {
        "rwm"
    } else {
        &rule.access
    }
}

// struct bpf_cgroup_dev_ctx (linux/bpf.h): access and kind in one word, then major, minor.
const KIND_BLOCK: i32 = 1;
const KIND_CHAR: i32 = 2;
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
const ACCESS_ALL: i32 = ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE;

// Registers. Register 1 holds the context at entry and is scratch afterwards.
const RESULT: u8 = 0;
const SCRATCH: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
const EXIT: u8 = 0x95;

/// Returns a program that tests the rules last to first and denies access if none matches. So a
/// later rule overrides an earlier one, as with the files of v1.
pub(super) fn v2_program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        op(LOAD_WORD, KIND, SCRATCH, 0, 0),
        op(MOVE_REGISTER, ACCESS, KIND, 0, 0),
        op(AND, KIND, 0, 0, 0xffff),
        op(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        op(LOAD_WORD, MAJOR, SCRATCH, 4, 0),
        op(LOAD_WORD, MINOR, SCRATCH, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let block = rule_block(rule);
        let is_unconditional = !block.iter().any(is_test);
        program.extend(block);
        if is_unconditional {
            // The verifier rejects programs with unreachable instructions.
            return program;
        }
    }
    program.extend([op(MOVE, RESULT, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    program
}

/// `if kind, access and numbers match { return allow }`: every failed test jumps to the end of the
/// block.
fn rule_block(rule: &DeviceRule) -> Vec<Instruction> {
    let mut tests = Vec::new();
    match rule.kind.unwrap_or(DeviceKind::All) {
        DeviceKind::Block => tests.push(op(JUMP_NOT_EQUAL, KIND, 0, 0, KIND_BLOCK)),
        DeviceKind::Char => tests.push(op(JUMP_NOT_EQUAL, KIND, 0, 0, KIND_CHAR)),
        DeviceKind::All | DeviceKind::Fifo => {}
    }
    let mask = access(rule).chars().fold(0, |mask, letter| {
        mask | match letter {
            'm' => ACCESS_MKNOD,
            'r' => ACCESS_READ,
            'w' => ACCESS_WRITE,
            _ => 0,
        }
    });
    if mask != ACCESS_ALL {
        tests.push(op(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0));
        tests.push(op(AND, SCRATCH, 0, 0, mask));
        // An allow rule must cover all of the requested access; a deny rule matches if it covers
        // any of it.
        tests.push(if rule.allow {
            op(JUMP_NOT_EQUAL_REGISTER, SCRATCH, ACCESS, 0, 0)
        } else {
            op(JUMP_EQUAL, SCRATCH, 0, 0, 0)
        });
    }
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(number) = number
            .and_then(|n| i32::try_from(n).ok())
            .filter(|n| *n >= 0)
        {
            tests.push(op(JUMP_NOT_EQUAL, register, 0, 0, number));
        }
    }
    let end = tests.len() + 2;
    for (index, test) in tests.iter_mut().enumerate() {
        if is_test(test) {
            test.offset = i16::try_from(end - index - 1).unwrap_or(i16::MAX);
        }
    }
    tests.extend([
        op(MOVE, RESULT, 0, 0, i32::from(rule.allow)),
        op(EXIT, 0, 0, 0, 0),
    ]);
    tests
}

fn is_test(instruction: &Instruction) -> bool {
    matches!(
        instruction.code,
        JUMP_EQUAL | JUMP_NOT_EQUAL | JUMP_NOT_EQUAL_REGISTER
    )
}

fn op(code: u8, destination: u8, source: u8, offset: i16, value: i32) -> Instruction {
    Instruction {
        code,
        registers: destination | source << 4,
        offset,
        value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(
        allow: bool,
        kind: DeviceKind,
        major: Option<i64>,
        minor: Option<i64>,
        access: &str,
    ) -> DeviceRule {
        DeviceRule {
            allow,
            kind: Some(kind),
            major,
            minor,
            access: access.into(),
        }
    }

    fn default_rules() -> Vec<DeviceRule> {
        let deny = rule(false, DeviceKind::All, None, None, "rwm");
        std::iter::once(deny)
            .chain(super::default_rules())
            .collect()
    }

    /// Interprets a program and returns whether it allows the access.
    fn run(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [
            i64::from(access << 16 | kind),
            i64::from(major),
            i64::from(minor),
        ];
        let (mut registers, mut pc) = ([0i64; 11], 0usize);
        loop {
            let i = program[pc];
            let (d, s) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            pc += 1;
            let mut jump = |taken: bool| {
                if taken {
                    pc += usize::try_from(i.offset).unwrap()
                }
            };
            match i.code {
                LOAD_WORD => registers[d] = context[usize::try_from(i.offset).unwrap() / 4],
                MOVE => registers[d] = i.value.into(),
                MOVE_REGISTER => registers[d] = registers[s],
                AND => registers[d] &= i64::from(i.value),
                SHIFT_RIGHT => registers[d] >>= i.value,
                JUMP_EQUAL => jump(registers[d] == i64::from(i.value)),
                JUMP_NOT_EQUAL => jump(registers[d] != i64::from(i.value)),
                JUMP_NOT_EQUAL_REGISTER => jump(registers[d] != registers[s]),
                EXIT => return registers[0] == 1,
                code => panic!("unknown code {code:#x}"),
            }
        }
    }

    #[test]
    fn default_rules_allow_null_and_deny_disks() {
        let program = v2_program(&default_rules());
        assert!(run(&program, KIND_CHAR, ACCESS_READ | ACCESS_WRITE, 1, 3));
        assert!(run(&program, KIND_CHAR, ACCESS_WRITE, 136, 7));
        assert!(
            run(&program, KIND_BLOCK, ACCESS_MKNOD, 8, 0),
            "may be created"
        );
        assert!(
            !run(&program, KIND_BLOCK, ACCESS_READ, 8, 0),
            "may not be opened"
        );
        assert!(!run(&program, KIND_CHAR, ACCESS_READ, 10, 200));
    }

    /// The kernel's verifier rejects programs with unreachable instructions.
    #[test]
    fn every_instruction_is_reachable() {
        let anything = rule(true, DeviceKind::All, None, None, "rwm");
        for rules in [
            default_rules(),
            vec![anything.clone()],
            [default_rules(), vec![anything]].concat(),
            Vec::new(),
        ] {
            let program = v2_program(&rules);
            let (mut reached, mut ahead) = (vec![false; program.len()], vec![0]);
            while let Some(pc) = ahead.pop() {
                if std::mem::replace(&mut reached[pc], true) {
                    continue;
                }
                if is_test(&program[pc]) {
                    ahead.push(pc + 1 + usize::try_from(program[pc].offset).unwrap());
                }
                if program[pc].code != EXIT {
                    ahead.push(pc + 1);
                }
            }
            assert_eq!(
                reached.iter().position(|reached| !reached),
                None,
                "{rules:?}"
            );
        }
    }

    #[test]
    fn later_rules_override_earlier_ones() {
        let rules = [
            rule(true, DeviceKind::All, None, None, "rwm"),
            rule(false, DeviceKind::Char, Some(1), Some(11), "w"),
        ];
        let program = v2_program(&rules);
        assert!(run(&program, KIND_CHAR, ACCESS_READ, 1, 11));
        assert!(!run(&program, KIND_CHAR, ACCESS_READ | ACCESS_WRITE, 1, 11));
        assert!(run(&program, KIND_BLOCK, ACCESS_WRITE, 1, 11));
    }

    #[test]
    fn v1_lines_have_the_kernels_format() {
        let lines: Vec<_> = v1_lines(&default_rules()[..4]).collect();
        assert_eq!(lines[0], ("devices.deny", "a".to_owned()));
        assert_eq!(lines[1], ("devices.allow", "c *:* m".to_owned()));
        assert_eq!(lines[3], ("devices.allow", "c 1:3 rwm".to_owned()));
    }
}
