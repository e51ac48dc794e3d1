//! Who holds a descriptor: the process's id as the agent sees it.

use core::ptr::read_volatile;

use crate::sock::{OFFSETS, frozen};

/// Frozen by the loader: how many pid namespaces lie between the initial one and the agent's.
#[unsafe(no_mangle)]
static PID_LEVEL: u32 = 0;

/// `enum pid_type`: PIDTYPE_TGID.
const TGID: usize = 1;
/// `struct upid`: an id and the namespace that it counts in.
const UPID: usize = 16;

/// The process's id in the agent's pid namespace; 0 if it has none there.
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
        let signal = read_volatile(
            task.add(frozen(&OFFSETS.task_signal) as usize)
                .cast::<*const u8>(),
        );
        let pids = signal.add(frozen(&OFFSETS.signal_pids) as usize);
        let pid = read_volatile(pids.cast::<*const u8>().add(TGID));
        let deepest = read_volatile(pid.add(frozen(&OFFSETS.pid_level) as usize).cast::<u32>());
        if deepest < level {
            return 0;
        }
        let numbers = pid.add(frozen(&OFFSETS.pid_numbers) as usize);
        read_volatile(numbers.add(level as usize * UPID).cast::<u32>())
    }
}
