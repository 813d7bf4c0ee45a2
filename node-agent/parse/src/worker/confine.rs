//! The limits that a child sets on itself before it reads a byte.

use std::io;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, getrlimit, set_dumpable_behavior, set_parent_process_death_signal,
    setrlimit,
};
use rustix::thread::set_no_new_privs;
use rustix::time::{ClockId, clock_gettime};

use crate::limits::{CPU_LIFE_S, DESCRIPTORS_MAX, FILE_BYTES_MAX, Limits};

/// Takes from this process what parsing doesn't need. To be called before threads are started.
pub(super) fn confine(limits: &Limits) -> io::Result<()> {
    // Dies with the thread that started it, which lives as long as its host.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    set_no_new_privs(true)?;
    // Nobody of the same user may look into documents' memory, and no core of it is written.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    bound(Resource::Core, 0)?;
    bound(Resource::As, limits.memory_bytes.saturating_add(limits.document_bytes_max))?;
    allow_memory(limits, 0)?;
    bound(Resource::Fsize, FILE_BYTES_MAX)?;
    bound(Resource::Nofile, DESCRIPTORS_MAX)?;
    bound(Resource::Cpu, CPU_LIFE_S)?;
    Ok(())
}

/// From here on neither threads nor processes are started (for a user other than root, whom the kernel doesn't bind).
pub(super) fn no_more_threads() -> io::Result<()> {
    bound(Resource::Nproc, 0)
}

/// Lets the process use `seconds` of a processor from now on; the kernel ends it after that.
pub(super) fn allow_processor(seconds: u64) -> io::Result<()> {
    let used = clock_gettime(ClockId::ProcessCPUTime).tv_sec.max(0) as u64;
    let hard = getrlimit(Resource::Cpu).maximum;
    let soft = (used + 1 + seconds).min(hard.unwrap_or(u64::MAX));
    setrlimit(Resource::Cpu, Rlimit { current: Some(soft), maximum: hard })?;
    Ok(())
}

/// Lets the process use its memory for parsing and, besides, `document_bytes` for the document that it opens: what is left to
/// parse with doesn't depend on how long the document is.
pub(super) fn allow_memory(limits: &Limits, document_bytes: u64) -> io::Result<()> {
    let hard = getrlimit(Resource::As).maximum;
    let soft = limits.memory_bytes.saturating_add(document_bytes.min(limits.document_bytes_max));
    setrlimit(Resource::As, Rlimit { current: Some(soft.min(hard.unwrap_or(u64::MAX))), maximum: hard })?;
    Ok(())
}

/// Sets both limits, never above a hard limit that stands already.
fn bound(resource: Resource, most: u64) -> io::Result<()> {
    let most = getrlimit(resource).maximum.map_or(most, |hard| hard.min(most));
    setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    Ok(())
}
