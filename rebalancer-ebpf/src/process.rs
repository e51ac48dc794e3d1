//! The PID of the process that holds a descriptor, in the reader's pid namespace.

use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::bpf_get_current_task_btf;

use crate::sock::{OFFSETS, frozen};

/// Frozen by the loader: level of the reader's pid namespace; 0 is the initial one.
#[unsafe(no_mangle)]
static PID_LEVEL: u32 = 0;

/// `enum pid_type`: PIDTYPE_TGID.
const TGID: usize = 1;
/// Size of `struct upid`: a number and its namespace.
const UPID: usize = 16;

/// The PID in the reader's pid namespace; 0 if it has none there.
///
/// # Safety
/// `task` is a `struct task_struct` from the kernel, not null.
#[inline(always)]
pub(crate) unsafe fn id(task: *const u8) -> u32 {
    let level = frozen(&PID_LEVEL);
    // SAFETY: plain loads along the kernel's types; a load through a null pointer gives 0.
    unsafe {
        if level == 0 {
            return read_volatile(task.add(frozen(&OFFSETS.task_tgid) as usize).cast::<u32>());
        }
        let pid = pid_of(task);
        if level_of(pid) < level {
            return 0;
        }
        let numbers = pid.add(frozen(&OFFSETS.pid_numbers) as usize);
        read_volatile(numbers.add(level as usize * UPID).cast::<u32>())
    }
}

/// The level of the pid namespace of the reading process.
#[inline(always)]
pub(crate) fn reader_level() -> u32 {
    // SAFETY: a helper without preconditions, which returns a task.
    unsafe { level_of(pid_of(bpf_get_current_task_btf().cast())) }
}

/// The `struct pid` of a process.
///
/// # Safety
/// As for [`id`].
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

/// The level of the process's pid namespace.
///
/// # Safety
/// `pid` is a `struct pid` of the kernel, or null.
#[inline(always)]
unsafe fn level_of(pid: *const u8) -> u32 {
    // SAFETY: a plain load along the kernel's types; a load through a null pointer gives 0.
    unsafe { read_volatile(pid.add(frozen(&OFFSETS.pid_level) as usize).cast::<u32>()) }
}
