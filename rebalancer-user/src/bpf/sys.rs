//! System calls that aya and rustix do not offer.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use rustix::{
    process::{Resource, Rlimit, setrlimit},
    thread::{CapabilitySet, capabilities},
};

/// Commands of `bpf(2)`, from `linux/bpf.h`.
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_TRACE_ITER: u32 = 28;

/// The part of `union bpf_attr` that links an iterator to one map.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    pad: u32,
}

/// `union bpf_iter_link_info`, its `map` member.
#[repr(C)]
struct IterLinkInfo {
    map_fd: u32,
    rest: [u32; 3],
}

#[repr(C)]
struct IterCreate {
    link_fd: u32,
    flags: u32,
}

/// Links an iterator program, to a map if it is one over a map: aya's own `attach` cannot name
/// the map, and its link can be read but once.
pub(super) fn link_iterator(
    program: BorrowedFd<'_>,
    map: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let map_fd = map.map_or(0, |map| map.as_raw_fd() as u32);
    let info = IterLinkInfo {
        map_fd,
        rest: [0; 3],
    };
    let attr = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        iter_info: map.map_or(0, |_| (&raw const info) as u64),
        iter_info_len: map.map_or(0, |_| size_of::<IterLinkInfo>() as u32),
        pad: 0,
    };
    bpf(BPF_LINK_CREATE, &attr)
}

/// A fresh pass over the linked map: reading the descriptor to its end runs it.
fn start_iterator(link: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    bpf(
        BPF_ITER_CREATE,
        &IterCreate {
            link_fd: link.as_raw_fd() as u32,
            flags: 0,
        },
    )
}

/// How a pass over an iterator ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PassEnd {
    /// The iterator came to its end.
    Whole,
    /// The program, or a very long list, stopped it: reading on would resume.
    CutShort,
}

/// Runs one pass of an iterator that prints nothing.
pub(super) fn run_iterator(link: BorrowedFd<'_>) -> io::Result<PassEnd> {
    let pass = start_iterator(link)?;
    let mut nothing = [0; 64];
    loop {
        match rustix::io::read(&pass, &mut nothing) {
            Ok(0) => return Ok(PassEnd::Whole),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(PassEnd::CutShort),
            Err(e) => return Err(e.into()),
        }
    }
}

/// `bpf(2)` for commands that answer with a descriptor.
fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is valid for its length, and the kernel takes a shorter attr as zero-padded.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<T>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Capabilities that loading, attaching and reading need, and this process lacks.
pub fn missing_capabilities() -> Vec<&'static str> {
    const NEEDED: [(CapabilitySet, &str); 4] = [
        (CapabilitySet::BPF, "CAP_BPF"),
        (CapabilitySet::PERFMON, "CAP_PERFMON"),
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
        (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
    ];
    let have = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    NEEDED
        .iter()
        .filter(|(cap, _)| !have.contains(*cap))
        .map(|(_, name)| *name)
        .collect()
}

/// Kernels before 5.11 charge maps to RLIMIT_MEMLOCK. Later ones ignore it, and so do we ignore
/// that raising it may be refused.
pub fn raise_memlock() {
    let _refused = setrlimit(
        Resource::Memlock,
        Rlimit {
            current: None,
            maximum: None,
        },
    );
}
