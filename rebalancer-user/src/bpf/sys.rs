//! Commands of `bpf(2)` that aya does not offer.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd};

/// `union bpf_attr`, longer than any kernel's so far: what a command writes back finds room in it.
///
/// Kernels from 6.17 on, until stable took the fix, write `query.revision` without looking at the
/// length that was passed: with a shorter attribute they overwrite 8 bytes of whatever is behind
/// it. A kernel takes an attribute that is longer than its own if the rest is zero.
#[repr(C)]
union Attr {
    all: [u64; 32],
    of_aya: bpf_attr,
}

impl Attr {
    const ZEROED: Self = Self { all: [0; 32] };
}

/// `union bpf_iter_link_info`, its `task` member.
#[repr(C)]
struct TaskInfo {
    tid: u32,
    pid: u32,
    pid_fd: u32,
}

/// Links an iterator program over processes, or over one of them: aya's `attach` cannot select one, and its
/// link can be read only once.
///
/// # Errors
/// E2BIG: this kernel cannot be asked for one process (before 6.1).
pub(super) fn link_iterator(program: BorrowedFd<'_>, process: Option<u32>) -> io::Result<OwnedFd> {
    let info = TaskInfo {
        tid: 0,
        pid: process.unwrap_or(0),
        pid_fd: 0,
    };
    let mut attr = Attr::ZEROED;
    attr.of_aya.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.of_aya.link_create.attach_type = bpf_attach_type::BPF_TRACE_ITER as u32;
    if process.is_some() {
        let length = size_of::<TaskInfo>() as u32;
        let iter_info = (&raw const info) as u64;
        attr.of_aya
            .link_create
            .__bindgen_anon_3
            .__bindgen_anon_1
            .iter_info = iter_info;
        attr.of_aya
            .link_create
            .__bindgen_anon_3
            .__bindgen_anon_1
            .iter_info_len = length;
    }
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// A fresh pass over what the link is for.
pub(super) fn start_iterator(link: BorrowedFd<'_>) -> io::Result<IteratorPass> {
    let mut attr = Attr::ZEROED;
    attr.of_aya.iter_create.link_fd = link.as_raw_fd() as u32;
    bpf_fd(bpf_cmd::BPF_ITER_CREATE, &mut attr).map(IteratorPass)
}

/// Ids of the sock_ops programs on a cgroup itself, in the order in which they run.
pub(super) fn sock_ops_on(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    const MOST: usize = 64; // BPF_CGROUP_MAX_PROGS
    let mut ids = [0_u32; MOST];
    let mut attr = Attr::ZEROED;
    attr.of_aya.query.__bindgen_anon_1.target_fd = cgroup.as_raw_fd() as u32;
    attr.of_aya.query.attach_type = bpf_attach_type::BPF_CGROUP_SOCK_OPS as u32;
    attr.of_aya.query.prog_ids = (&raw mut ids) as u64;
    attr.of_aya.query.__bindgen_anon_2.prog_cnt = MOST as u32;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    // SAFETY: all of it is initialized, and any bytes are valid.
    let count = unsafe { attr.of_aya.query.__bindgen_anon_2.prog_cnt };
    Ok(ids[..MOST.min(count as usize)].to_vec())
}

/// How a pass over an iterator ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PassEnd {
    /// The iterator came to its end.
    Whole,
    /// The program has filled its memory, or one call has visited a million objects; the next call continues
    /// with the same descriptor.
    CutShort,
}

/// One pass of an iterator that prints nothing.
pub(super) struct IteratorPass(OwnedFd);

impl IteratorPass {
    /// Runs it to its end, or until it is cut short; the next call resumes there.
    pub(super) fn run(&self) -> io::Result<PassEnd> {
        let mut nothing = [0; 64];
        loop {
            match rustix::io::read(&self.0, &mut nothing) {
                Ok(0) => return Ok(PassEnd::Whole),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(PassEnd::CutShort),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// `bpf(2)` for commands that answer with a descriptor.
fn bpf_fd(command: bpf_cmd, attr: &mut Attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// `bpf(2)`. What `attr` points to must be valid for the lengths that it says.
fn bpf(command: bpf_cmd, attr: &mut Attr) -> io::Result<libc::c_long> {
    let attr = std::ptr::from_mut(attr);
    // SAFETY: `attr` is valid for its length, and the kernel's own `union bpf_attr` is no longer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            attr,
            size_of::<Attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use aya_obj::generated::bpf_attr__bindgen_ty_10;

    use super::*;

    #[test]
    fn the_kernel_writes_only_into_the_attribute() {
        #[repr(C)]
        struct Stack {
            attr: Attr,
            canary: [u8; 64],
        }
        const CANARY: [u8; 64] = [0x5a; 64];
        // Where `linux/bpf.h` has it.
        assert_eq!(offset_of!(bpf_attr__bindgen_ty_10, revision), 56);
        let mut stack = Stack {
            attr: Attr::ZEROED,
            canary: CANARY,
        };
        assert_eq!(offset_of!(Stack, canary), size_of::<Attr>());
        assert!(56 + size_of::<u64>() <= size_of::<Attr>());
        // As those kernels do: without looking at the length.
        stack.attr.of_aya.query.revision = u64::MAX;
        assert_eq!(stack.canary, CANARY);
        // SAFETY: all of it is initialized.
        assert_eq!(unsafe { stack.attr.all[7] }, u64::MAX);
    }
}
