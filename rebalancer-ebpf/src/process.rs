//! Who holds a descriptor: the process's id as the reader sees it.

use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::bpf_get_current_task_btf;

use crate::sock::{OFFSETS, frozen};

/// Frozen by the loader: how many pid namespaces lie between the initial one and the reader's.
#[unsafe(no_mangle)]
static PID_LEVEL: u32 = 0;

/// `enum pid_type`: PIDTYPE_TGID.
const TGID: usize = 1;
/// `struct upid`: an id and the namespace that it counts in.
const UPID: usize = 16;

/// The process's id in the reader's pid namespace; 0 if it has none there.
///
/// # Safety
/// `task` is a `struct task_struct` that the kernel gave this program, not null.
#[inline(always)]
pub(crate) unsafe fn id(task: *const u8) -> u32 {
    let level = frozen(&PID_LEVEL);
    // SAFETY: plain loads along the kernel's types; one through a null pointer gives 0.
    unsafe {
        if level == 0 {
            return read_volatile(task.add(frozen(&OFFSETS.task_tgid) as usize).cast::<u32>());
        }
        let pid = pid_of(task);
        if deepest(pid) < level {
            return 0;
        }
        let numbers = pid.add(frozen(&OFFSETS.pid_numbers) as usize);
        read_volatile(numbers.add(level as usize * UPID).cast::<u32>())
    }
}

/// How many pid namespaces lie between the initial one and that of the process which reads.
#[inline(always)]
pub(crate) fn readers_level() -> u32 {
    // SAFETY: a helper without preconditions, and what it gives is a task.
    unsafe { deepest(pid_of(bpf_get_current_task_btf().cast())) }
}

/// The `struct pid` of a process.
///
/// # Safety
/// As of [`id`].
#[inline(always)]
unsafe fn pid_of(task: *const u8) -> *const u8 {
    // SAFETY: plain loads along the kernel's types.
    unsafe {
        let signal = read_volatile(
            task.add(frozen(&OFFSETS.task_signal) as usize)
                .cast::<*const u8>(),
        );
        let pids = signal.add(frozen(&OFFSETS.signal_pids) as usize);
        read_volatile(pids.cast::<*const u8>().add(TGID))
    }
}

/// How deep the pid namespace is that a process is in.
///
/// # Safety
/// `pid` is a `struct pid` of the kernel, or null.
#[inline(always)]
unsafe fn deepest(pid: *const u8) -> u32 {
    // SAFETY: a plain load along the kernel's types; through a null pointer it gives 0.
    unsafe { read_volatile(pid.add(frozen(&OFFSETS.pid_level) as usize).cast::<u32>()) }
}
