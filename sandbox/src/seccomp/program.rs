//! Programs of classic BPF, as the kernel runs them for each system call (seccomp(2), Documentation/networking/filter.rst).
//!
//! ```text
//! load arch ─► of this ABI? ─► load number ─► search in ranges of numbers ─► rules of the call, strictest first ─► return
//! ```
//!
//! A block never runs off its end: it returns on every path. So blocks are put one behind the other without a look inside.

use super::rules::{Condition, Operator, Rule};

/// What the kernel takes at most (BPF_MAXINSNS).
pub(crate) const MAX_INSTRUCTIONS: usize = 4096;
/// The bytes of an instruction: code, two jumps and a constant.
pub(crate) const SIZE: usize = 8;

/// Where things are in `struct seccomp_data`. Both architectures that filters are compiled for are little-endian.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const EQUAL: u16 = 0x15;
pub(super) const GREATER: u16 = 0x25;
pub(super) const NOT_LESS: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) then: u8,
    pub(crate) otherwise: u8,
    pub(crate) constant: u32,
}

pub(crate) type Block = Vec<Instruction>;

fn plain(code: u16, constant: u32) -> Instruction {
    Instruction { code, then: 0, otherwise: 0, constant }
}

fn branch(code: u16, constant: u32, then: u8, otherwise: u8) -> Instruction {
    Instruction { code, then, otherwise, constant }
}

/// What is done for the calls from a number on, up to the next range's. The last rule has no conditions.
pub(super) type Range = (u32, Vec<Rule>);

/// A whole filter: for each architecture its ranges, which begin with 0, and `elsewhere` for all other architectures.
pub(super) fn filter(architectures: &[(u32, Vec<Range>)], elsewhere: u32) -> Block {
    let mut program = vec![plain(LOAD, ARCH)];
    for (audit, ranges) in architectures {
        let mut block = vec![plain(LOAD, NUMBER)];
        block.extend(search(ranges));
        program.push(branch(EQUAL, *audit, 1, 0));
        program.push(plain(JUMP, block.len() as u32));
        program.extend(block);
    }
    program.push(plain(RETURN, elsewhere));
    program
}

/// Halves the ranges until one is left. The number is loaded.
fn search(ranges: &[Range]) -> Block {
    let (first, second) = ranges.split_at(ranges.len() / 2);
    let Some((start, rules)) = second.first() else { return Block::new() };
    if first.is_empty() {
        return rules_block(rules);
    }
    let (below, from) = (search(first), search(second));
    let mut block = match u8::try_from(below.len()) {
        Ok(length) => vec![branch(NOT_LESS, *start, length, 0)],
        Err(_) => vec![branch(NOT_LESS, *start, 0, 1), plain(JUMP, below.len() as u32)],
    };
    block.extend(below);
    block.extend(from);
    block
}

fn rules_block(rules: &[Rule]) -> Block {
    let mut block = Block::new();
    for rule in rules {
        let mut steps: Vec<Step> = Vec::new();
        for condition in &rule.conditions {
            steps.extend(if condition.is_wide { wide(condition) } else { narrow(condition) });
        }
        let end = steps.len() + 1;
        for (at, step) in steps.into_iter().enumerate() {
            // At most six conditions of five steps each: no jump is too long.
            let resolve = |to: To| match to {
                To::Skip(count) => count,
                To::Fail => (end - at - 1) as u8,
            };
            block.push(branch(step.code, step.constant, resolve(step.then), resolve(step.otherwise)));
        }
        block.push(plain(RETURN, rule.action));
    }
    block
}

/// Where a comparison goes on: over so many steps, or to the next rule.
#[derive(Clone, Copy)]
enum To {
    Skip(u8),
    Fail,
}

struct Step {
    code: u16,
    constant: u32,
    then: To,
    otherwise: To,
}

use To::{Fail, Skip};

fn load(condition: &Condition, half: u32) -> Step {
    let constant = ARGUMENTS + 8 * u32::from(condition.index) + 4 * half;
    Step { code: LOAD, constant, then: Skip(0), otherwise: Skip(0) }
}

fn compare(code: u16, constant: u32, then: To, otherwise: To) -> Step {
    Step { code, constant, then, otherwise }
}

/// The half of an argument has the bits of `value` under `mask`.
fn masked(condition: &Condition, half: u32, mask: u32, value: u32) -> Vec<Step> {
    let mut steps = vec![load(condition, half)];
    match mask {
        0 => return Vec::new(),
        u32::MAX => {}
        _ => steps.push(compare(AND, mask, Skip(0), Skip(0))),
    }
    steps.push(compare(EQUAL, value & mask, Skip(0), Fail));
    steps
}

/// Goes to the next rule unless the lower half of the argument fits.
fn narrow(condition: &Condition) -> Vec<Step> {
    let low = condition.value as u32;
    let mut steps = vec![load(condition, 0)];
    steps.push(match condition.operator {
        Operator::MaskedEqual(mask) => return masked(condition, 0, mask as u32, low),
        Operator::Equal => compare(EQUAL, low, Skip(0), Fail),
        Operator::NotEqual => compare(EQUAL, low, Fail, Skip(0)),
        Operator::Greater => compare(GREATER, low, Skip(0), Fail),
        Operator::NotGreater => compare(GREATER, low, Fail, Skip(0)),
        Operator::NotLess => compare(NOT_LESS, low, Skip(0), Fail),
        Operator::Less => compare(NOT_LESS, low, Fail, Skip(0)),
    });
    steps
}

/// Goes to the next rule unless the argument fits: its upper half decides, and where that is the same its lower.
fn wide(condition: &Condition) -> Vec<Step> {
    let (high, low) = ((condition.value >> 32) as u32, condition.value as u32);
    // What a greater upper half means, what a lower one, and how the lower halves are compared.
    let (greater, less, code, then, otherwise) = match condition.operator {
        Operator::MaskedEqual(mask) => {
            let mut steps = masked(condition, 1, (mask >> 32) as u32, high);
            steps.extend(masked(condition, 0, mask as u32, low));
            return steps;
        }
        Operator::Equal => (Fail, Fail, EQUAL, Skip(0), Fail),
        Operator::NotEqual => (Skip(3), Skip(2), EQUAL, Fail, Skip(0)),
        Operator::Greater => (Skip(3), Fail, GREATER, Skip(0), Fail),
        Operator::NotLess => (Skip(3), Fail, NOT_LESS, Skip(0), Fail),
        Operator::NotGreater => (Fail, Skip(2), GREATER, Fail, Skip(0)),
        Operator::Less => (Fail, Skip(2), NOT_LESS, Fail, Skip(0)),
    };
    vec![
        load(condition, 1),
        compare(GREATER, high, greater, Skip(0)),
        compare(EQUAL, high, Skip(0), less),
        load(condition, 0),
        compare(code, low, then, otherwise),
    ]
}

/// As the kernel and CRIU's images have it.
pub(crate) fn to_bytes(program: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * SIZE);
    for instruction in program {
        bytes.extend(instruction.code.to_le_bytes());
        bytes.extend([instruction.then, instruction.otherwise]);
        bytes.extend(instruction.constant.to_le_bytes());
    }
    bytes
}
