//! A profile of the OCI spec as rules for the numbers of each ABI: what is done for a call, by its arguments.
//!
//! As runc and libseccomp have it: a name that an ABI lacks is passed over there; a rule that does what is done by default
//! anyway is none; conditions that share an argument are alternatives, others hold together; and what is beyond the greatest
//! number that the profile names, the profile's author did not know, so it does not exist (ENOSYS).
//!
//! Where rules contradict each other, the strictest that fits is followed, by the kernel's order of actions. libseccomp follows
//! one of those that fit, which one depends on how it merges them; so a process is never allowed more here.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::{
    numbers::{Abi, X32_BIT, through},
    program::Range,
};
use crate::Error;

/// The kernel's actions (linux/seccomp.h); the lower half of some is a number for the caller or its tracer.
pub(crate) const KILL_PROCESS: u32 = 0x8000_0000;
pub(crate) const KILL_THREAD: u32 = 0;
pub(crate) const TRAP: u32 = 0x0003_0000;
pub(crate) const ERRNO: u32 = 0x0005_0000;
pub(crate) const TRACE: u32 = 0x7ff0_0000;
pub(crate) const LOG: u32 = 0x7ffc_0000;
pub(crate) const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// How an argument is compared with a value, without signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Equal,
    NotEqual,
    Greater,
    NotGreater,
    Less,
    NotLess,
    /// In the bits of this mask.
    MaskedEqual(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// 0 to 5.
    pub(crate) index: u8,
    pub(crate) operator: Operator,
    pub(crate) value: u64,
    /// Whether all 64 bits are compared, or the lower half.
    pub(crate) is_wide: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// What the filter returns if all conditions hold.
    pub(crate) action: u32,
    pub(crate) conditions: Vec<Condition>,
}

impl Rule {
    fn always(action: u32) -> Rule {
        Rule { action, conditions: Vec::new() }
    }
}

/// Rules by the numbers of one ABI.
type Calls = BTreeMap<u32, Vec<Rule>>;

/// What a filter does, for each architecture that the kernel tells apart. A call of another one ends its thread.
/// `abis`: those of the machine, its own first.
pub(super) fn ranges(profile: &LinuxSeccomp, abis: &[Abi]) -> Result<Vec<(u32, Vec<Range>)>, Error> {
    let Some(native) = abis.first().copied() else {
        return Err(Error::Unsupported("seccomp profiles are compiled for x86_64 and aarch64 only".into()));
    };
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let listed = profile.architectures().as_deref().unwrap_or_default();
    let has = |abi: Abi| abi == native || listed.contains(&abi.profile_name());
    let mut architectures: Vec<(u32, Vec<Range>)> = Vec::new();
    for abi in abis.iter().copied().filter(|abi| *abi != Abi::X32 && has(*abi)) {
        let calls = calls(profile, abi, default)?;
        let ranges = match abi {
            Abi::X86_64 => {
                let x32 = has(Abi::X32).then(|| self::calls(profile, Abi::X32, default)).transpose()?;
                of_x86_64(&calls, x32.as_ref(), default)
            }
            Abi::X32 | Abi::X86 | Abi::Aarch64 | Abi::Arm => {
                let mut table = Table { default, ranges: Vec::new() };
                table.segment(0, u32::MAX, &calls);
                table.ranges
            }
        };
        architectures.push((abi.audit(), ranges));
    }
    Ok(architectures)
}

/// Two ABIs in one table, told apart by a bit of the number.
fn of_x86_64(calls: &Calls, x32: Option<&Calls>, default: u32) -> Vec<Range> {
    let mut table = Table { default, ranges: Vec::new() };
    table.segment(0, X32_BIT - 1, calls);
    match x32 {
        Some(x32) => table.segment(X32_BIT, u32::MAX, x32),
        None => {
            table.push(X32_BIT, vec![Rule::always(KILL_THREAD)]);
            // A tracer's way of having no call made.
            table.push(u32::MAX, vec![Rule::always(default)]);
        }
    }
    table.ranges
}

struct Table {
    default: u32,
    ranges: Vec<Range>,
}

impl Table {
    /// Adds the numbers from `start` to `end`. What is beyond the calls does not exist, unless calls are passed by default.
    fn segment(&mut self, start: u32, end: u32, calls: &Calls) {
        let mut next = start;
        for (number, rules) in calls.range(start..=end) {
            if next < *number {
                self.push(next, vec![Rule::always(self.default)]);
            }
            self.push(*number, self.ordered(rules));
            next = number + 1;
        }
        let is_permissive = matches!(self.default & 0xffff_0000, ALLOW | LOG | TRACE);
        let beyond = if calls.is_empty() || is_permissive { self.default } else { ERRNO | ENOSYS };
        self.push(next, vec![Rule::always(beyond)]);
    }

    /// Adds a range, or lets the one before it go on if that does the same.
    fn push(&mut self, start: u32, rules: Vec<Rule>) {
        if self.ranges.last().is_none_or(|(_, before)| *before != rules) {
            self.ranges.push((start, rules));
        }
    }

    /// The strictest first, up to one that always holds.
    fn ordered(&self, rules: &[Rule]) -> Vec<Rule> {
        let mut ordered = rules.to_vec();
        ordered.sort_by_key(|rule| strictness(rule.action));
        let always = ordered.iter().position(|rule| rule.conditions.is_empty());
        match always {
            Some(at) => ordered.truncate(at + 1),
            None => ordered.push(Rule::always(self.default)),
        }
        ordered
    }
}

/// The kernel's order of actions: a lower one wins over a higher one.
pub(crate) fn strictness(action: u32) -> i32 {
    (action & 0xffff_0000).cast_signed()
}

/// The profile's rules by the numbers of an ABI, those that name a call but do nothing about it included, as none.
fn calls(profile: &LinuxSeccomp, abi: Abi, default: u32) -> Result<Calls, Error> {
    let mut calls = Calls::new();
    for syscall in profile.syscalls().iter().flatten() {
        let action = action(syscall.action(), syscall.errno_ret())?;
        for name in syscall.names() {
            if name.is_empty() {
                return Err(Error::Invalid("seccomp profile: a system call without a name".into()));
            }
            let direct = abi.number(name);
            if let Some(number) = direct {
                let rules = calls.entry(number).or_default();
                if action != default {
                    rules.extend(alternatives(syscall, action, abi)?);
                }
            }
            if action == default {
                continue;
            }
            let Some((multiplexer, which)) = through(abi, name) else { continue };
            let Some(number) = abi.number(multiplexer) else { continue };
            let is_conditional = syscall.args().as_ref().is_some_and(|args| !args.is_empty());
            // What the call's own arguments are, the filter cannot see there. What is refused for some is refused for all;
            // libseccomp also passes all that is passed for some.
            if is_conditional && strictness(action) > strictness(default) {
                continue;
            }
            let (operator, is_wide) = (Operator::Equal, false);
            let condition = Condition { index: 0, operator, value: which.into(), is_wide };
            calls.entry(number).or_default().push(Rule { action, conditions: vec![condition] });
        }
    }
    Ok(calls)
}

/// The rules that one of the profile makes.
fn alternatives(syscall: &LinuxSyscall, action: u32, abi: Abi) -> Result<Vec<Rule>, Error> {
    let args = syscall.args().as_deref().unwrap_or_default();
    let conditions = args.iter().map(|arg| condition(arg, abi)).collect::<Result<Vec<_>, _>>()?;
    let is_shared = |index: u8| conditions.iter().filter(|condition| condition.index == index).count() > 1;
    if (0..6).any(is_shared) {
        let single = |condition: Condition| Rule { action, conditions: vec![condition] };
        return Ok(conditions.into_iter().map(single).collect());
    }
    Ok(vec![Rule { action, conditions }])
}

fn condition(arg: &LinuxSeccompArg, abi: Abi) -> Result<Condition, Error> {
    let index = u8::try_from(arg.index()).ok().filter(|index| *index < 6);
    let index =
        index.ok_or_else(|| Error::Invalid(format!("seccomp profile: a call has no argument {}", arg.index())))?;
    let (operator, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (Operator::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (Operator::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (Operator::NotGreater, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (Operator::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (Operator::NotLess, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (Operator::Greater, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (Operator::MaskedEqual(arg.value()), arg.value_two().unwrap_or_default())
        }
    };
    Ok(Condition { index, operator, value, is_wide: abi.is_wide() })
}

/// What a filter returns for an action. Without a number of its own, that of ERRNO and TRACE is EPERM, as runc has it.
fn action(action: Action, number: Option<u32>) -> Result<u32, Error> {
    let number = number.unwrap_or(EPERM) & 0xffff;
    Ok(match action {
        Action::ScmpActKill | Action::ScmpActKillThread => KILL_THREAD,
        Action::ScmpActKillProcess => KILL_PROCESS,
        Action::ScmpActTrap => TRAP,
        Action::ScmpActErrno => ERRNO | number,
        Action::ScmpActTrace => TRACE | number,
        Action::ScmpActLog => LOG,
        Action::ScmpActAllow => ALLOW,
        Action::ScmpActNotify => {
            return Err(Error::Unsupported(
                "a container whose seccomp profile notifies an agent (SCMP_ACT_NOTIFY) is not restored: CRIU loads filters \
                 without the descriptor that the agent would listen on"
                    .into(),
            ));
        }
    })
}
