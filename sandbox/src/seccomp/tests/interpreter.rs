//! The kernel's part: a machine that runs classic BPF on a system call, and refuses what the kernel's checker refuses.

use crate::seccomp::program::{AND, EQUAL, GREATER, Instruction, JUMP, LOAD, NOT_LESS, RETURN};

/// `struct seccomp_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) arch: u32,
    pub(super) number: u32,
    pub(super) arguments: [u64; 6],
}

/// Of libseccomp's programs: JSET, and returns of the accumulator are not among them.
const ANY_BIT: u16 = 0x45;

fn word(call: &Call, at: u32) -> u32 {
    match at {
        0 => call.number,
        4 => call.arch,
        // The instruction pointer, which no profile speaks of.
        8 | 12 => 0,
        16..=60 if at.is_multiple_of(4) => {
            let argument = call.arguments[(at as usize - 16) / 8];
            if at.is_multiple_of(8) { argument as u32 } else { (argument >> 32) as u32 }
        }
        _ => panic!("a load from {at}"),
    }
}

/// What the program returns.
pub(super) fn run(program: &[Instruction], call: &Call) -> u32 {
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let Instruction { code, then, otherwise, constant } = program[at];
        at += 1;
        let holds = match code {
            LOAD => {
                accumulator = word(call, constant);
                continue;
            }
            AND => {
                accumulator &= constant;
                continue;
            }
            JUMP => {
                at += constant as usize;
                continue;
            }
            RETURN => return constant,
            EQUAL => accumulator == constant,
            GREATER => accumulator > constant,
            NOT_LESS => accumulator >= constant,
            ANY_BIT => accumulator & constant != 0,
            _ => panic!("instruction {code:#x}"),
        };
        at += usize::from(if holds { then } else { otherwise });
    }
}

/// That every jump stays in the program, and its end is a return.
pub(super) fn check(program: &[Instruction]) {
    for (at, instruction) in program.iter().enumerate() {
        let left = program.len() - at - 1;
        match instruction.code {
            JUMP => assert!((instruction.constant as usize) < left, "{at}: {instruction:?}"),
            EQUAL | GREATER | NOT_LESS | ANY_BIT => {
                let furthest = instruction.then.max(instruction.otherwise);
                assert!(usize::from(furthest) < left, "{at}: {instruction:?}");
            }
            _ => {}
        }
    }
    assert_eq!(program.last().unwrap().code, RETURN);
}
