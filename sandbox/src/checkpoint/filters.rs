//! The system call filters of a checkpoint's threads, which are written anew: every thread is to run under the profile of the
//! request, whatever the archive says. And with them whether it may gain privileges (no_new_privs), if the request forbids it.
//!
//! ```text
//! archive   core-*.img: mode, which filter is the first ─► seccomp.img: first ─► next ─► … ─► last
//! written   core-*.img: mode 2, …                       ─► the request's ─► those that the processes had installed themselves
//! ```
//!
//! What the origin's runtime had installed gives way to the request's, since two profiles of two nodes would pass only what both
//! pass. It is the first filter of every thread, the same for all; whether there was one, the archive's spec tells. That need
//! not be believed: a filter kept by mistake only restricts, and one dropped by mistake is the processes' own affair.
//!
//! Those that are kept can only restrict: for each call the kernel runs all filters, and the strictest answer is followed
//! (seccomp(2)). With an answer that asks a tracer or an agent where there is none, the call fails; a tracer that changes a call
//! has it filtered again (since Linux 4.8). Flags that would make more than a filter are refused.
//!
//! CRIU loads filters before it gives up root's credentials, and has them suspended until it is done (PTRACE_O_SUSPEND_SECCOMP),
//! or one could answer that a call has succeeded which was never made. The kernel denies that to who is filtered itself.

use std::{borrow::Cow, collections::BTreeMap};

use super::{
    given::Given,
    image::{Kind, Magic, Message, Refused, Writer, file, messages, only},
    images::Images,
    processes::{CORE, CREDS, THREAD},
};
use crate::seccomp::{FLAG_LOG, FLAG_SPEC_ALLOW, FLAG_TSYNC, program};

const ENTRY: Kind = Kind { name: "seccomp_entry", once: &[], many: &[1] };
const FILTER: Kind = Kind { name: "seccomp_filter", once: &[1, 2, 3], many: &[] };
const NAME: &str = "seccomp.img";

/// Fields of `thread_core_entry`.
const MODE: u32 = 11;
const FIRST: u32 = 12;
const CREDENTIALS: u32 = 10;
/// Of `creds_entry`.
const NO_NEW_PRIVS: u32 = 18;
/// SECCOMP_MODE_*.
const NONE: u32 = 0;
const FILTERED: u32 = 2;

/// The instructions of all filters of a thread, with those that the kernel counts for each (MAX_INSNS_PER_PATH).
const MAX_TOTAL: usize = 32_768;
const OVERHEAD: usize = 4;

/// A filter as it is loaded.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Filter<'a> {
    program: Cow<'a, [u8]>,
    flags: u32,
}

/// In the order in which they are loaded.
type Chain<'a> = Vec<Filter<'a>>;

/// What is restored in the place of what the archive has.
pub(crate) struct Rewritten {
    /// Files by their names.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// Whether any thread has a filter.
    pub(crate) is_filtered: bool,
}

/// Writes the files anew. `processes`: the threads of each that lives, the process itself first. `had_profile`: the archive's spec
/// has one.
pub(crate) fn rewrite(
    images: &Images,
    given: &Given,
    processes: &[Vec<u32>],
    had_profile: bool,
) -> Result<Rewritten, Refused> {
    let found = if images.has(NAME) { images.read(NAME)? } else { Vec::new() };
    let archived = parse(&found).map_err(|refused| refused.of(NAME))?;
    let mut files = BTreeMap::new();
    for thread in processes.iter().flatten() {
        let name = format!("core-{thread}.img");
        files.insert(*thread, images.read(&name)?);
    }
    let mut chains: Vec<Vec<Chain<'_>>> = Vec::new();
    for threads in processes {
        chains.push(of_process(threads, &files, &archived)?);
    }
    let first = chains.iter().flatten().next().and_then(|chain| chain.first()).cloned();
    let is_runtimes = |first: &Filter<'_>| {
        let same = |chain: &Chain<'_>| chain.first().is_some_and(|other| other.program == first.program);
        had_profile && given.seccomp.is_some() && chains.iter().flatten().all(same)
    };
    let dropped = usize::from(first.as_ref().is_some_and(is_runtimes));
    let own = given
        .seccomp
        .as_ref()
        .map(|filter| Filter { program: Cow::Owned(program::to_bytes(&filter.program)), flags: filter.flags });
    let mut is_filtered = false;
    for chain in chains.iter_mut().flatten() {
        chain.drain(..dropped);
        if let Some(own) = &own {
            chain.insert(0, own.clone());
        }
        let total: usize = chain.iter().map(|filter| filter.program.len() / program::SIZE + OVERHEAD).sum();
        if total > MAX_TOTAL {
            return Err(Refused(format!("{NAME}: a thread has filters of more than {MAX_TOTAL} instructions")));
        }
        is_filtered |= !chain.is_empty();
    }
    let files = write(processes, &files, chains, given.no_new_privileges)?;
    Ok(Rewritten { files, is_filtered })
}

/// The filters of the archive, and which comes after each.
fn parse(found: &[u8]) -> Result<Vec<(Filter<'_>, Option<u32>)>, Refused> {
    // CRIU takes a file without a message for none.
    let parsed = if found.is_empty() { Vec::new() } else { messages(found, Magic::Seccomp)? };
    let entry = match &parsed[..] {
        [] => return Ok(Vec::new()),
        [one] => Message::parse(one, &ENTRY)?,
        more => return Err(Refused(format!("it holds {} messages, not one", more.len()))),
    };
    let mut filters = Vec::new();
    for filter in entry.children(1, &FILTER)? {
        let found = filter.bytes(1)?.ok_or_else(|| filter.lacks(1))?;
        let flags = filter.number(3)?.unwrap_or(0);
        if found.is_empty()
            || found.len() % program::SIZE != 0
            || found.len() / program::SIZE > program::MAX_INSTRUCTIONS
        {
            return Err(Refused(format!("a filter of {} bytes is none", found.len())));
        }
        if flags & !(FLAG_TSYNC | FLAG_LOG | FLAG_SPEC_ALLOW) != 0 {
            return Err(Refused(format!("a filter is loaded with flags ({flags:#x}) that are not restored")));
        }
        filters.push((Filter { program: Cow::Borrowed(found), flags }, filter.number(2)?));
    }
    Ok(filters)
}

/// The filters of each thread. CRIU writes those that all threads have in common for the first alone, to be shared.
fn of_process<'a>(
    threads: &[u32],
    files: &BTreeMap<u32, Vec<u8>>,
    archived: &[(Filter<'a>, Option<u32>)],
) -> Result<Vec<Chain<'a>>, Refused> {
    let mut chains: Vec<Chain<'a>> = Vec::new();
    let mut shared: Chain<'a> = Vec::new();
    for thread in threads {
        let name = format!("core-{thread}.img");
        let chain = of_thread(&files[thread], archived).map_err(|refused| refused.of(&name))?;
        if chains.is_empty() && chain.iter().all(|filter| filter.flags & FLAG_TSYNC != 0) {
            shared.clone_from(&chain);
        }
        let mut chain = if chain.is_empty() { shared.clone() } else { chain };
        chain.iter_mut().for_each(|filter| filter.flags &= !FLAG_TSYNC);
        chains.push(chain);
    }
    Ok(chains)
}

fn of_thread<'a>(core: &[u8], archived: &[(Filter<'a>, Option<u32>)]) -> Result<Chain<'a>, Refused> {
    let core = only(core, Magic::Core).and_then(|bytes| Message::parse(bytes, &CORE))?;
    let thread = core.child(5, &THREAD)?.ok_or_else(|| core.lacks(5))?;
    match thread.number(MODE)?.unwrap_or(NONE) {
        NONE => return Ok(Vec::new()),
        FILTERED => {}
        // The kernel gives nobody both a filter and the strict mode, so there would be no profile in force.
        mode => return Err(Refused(format!("it is in seccomp mode {mode}, which is not restored"))),
    }
    let (mut chain, mut total) = (Vec::new(), 0);
    let mut next = Some(thread.required(FIRST)?);
    while let Some(at) = next {
        let found = usize::try_from(at).ok().and_then(|at| archived.get(at));
        let (filter, after) = found.ok_or_else(|| Refused(format!("its filter {at} is not in {NAME}")))?;
        total += filter.program.len() / program::SIZE + OVERHEAD;
        // A ring of filters as well.
        if total > MAX_TOTAL {
            return Err(Refused(format!("it has filters of more than {MAX_TOTAL} instructions")));
        }
        chain.push(filter.clone());
        next = *after;
    }
    Ok(chain)
}

/// The files with these filters, and nothing of what the archive's had.
fn write(
    processes: &[Vec<u32>],
    files: &BTreeMap<u32, Vec<u8>>,
    chains: Vec<Vec<Chain<'_>>>,
    no_new_privs: bool,
) -> Result<Vec<(String, Vec<u8>)>, Refused> {
    let mut entry = Writer::default();
    let mut known: BTreeMap<Chain<'_>, u64> = BTreeMap::new();
    let mut count = 0;
    let mut written = Vec::new();
    for (threads, mut chains) in processes.iter().zip(chains) {
        share(&mut chains);
        for (thread, chain) in threads.iter().zip(chains) {
            let name = format!("core-{thread}.img");
            let first = (!chain.is_empty()).then(|| {
                *known.entry(chain).or_insert_with_key(|chain| {
                    let first = count;
                    for (at, filter) in chain.iter().enumerate() {
                        count += 1;
                        let message = Writer::default().bytes(1, &filter.program).number(3, filter.flags.into());
                        let is_last = at + 1 == chain.len();
                        let message = if is_last { message } else { message.number(2, count) };
                        entry = std::mem::take(&mut entry).child(1, message);
                    }
                    first
                })
            });
            let core = with_filter(&files[thread], first, no_new_privs).map_err(|refused| refused.of(&name))?;
            written.push((name, core));
        }
    }
    written.push((NAME.to_owned(), file(Magic::Seccomp, &[entry])));
    Ok(written)
}

/// Has the first thread load what all have in common, for all of them: only so may the process add to it for all its threads
/// later on. A thread that has anything of its own keeps the kernel from that, and CRIU from noticing.
fn share(chains: &mut [Chain<'_>]) {
    let [first, others @ ..] = chains else { return };
    if others.is_empty() || first.is_empty() || others.iter().any(|other| other != first) {
        return;
    }
    first.iter_mut().for_each(|filter| filter.flags |= FLAG_TSYNC);
    others.iter_mut().for_each(Vec::clear);
}

/// A thread's file as it is, but for its filters and what the request takes from it.
fn with_filter(core: &[u8], first: Option<u64>, no_new_privs: bool) -> Result<Vec<u8>, Refused> {
    let core = only(core, Magic::Core).and_then(|bytes| Message::parse(bytes, &CORE))?;
    let thread = core.child(5, &THREAD)?.ok_or_else(|| core.lacks(5))?;
    let rest = if no_new_privs {
        let creds = thread.child(CREDENTIALS, &CREDS)?.ok_or_else(|| thread.lacks(CREDENTIALS))?;
        let creds = creds.without(&[NO_NEW_PRIVS]).number(NO_NEW_PRIVS, 1);
        thread.without(&[MODE, FIRST, CREDENTIALS]).child(CREDENTIALS, creds)
    } else {
        thread.without(&[MODE, FIRST])
    };
    let thread = match first {
        Some(first) => rest.number(MODE, FILTERED.into()).number(FIRST, first),
        None => rest,
    };
    Ok(file(Magic::Core, &[core.without(&[5]).child(5, thread)]))
}
