//! Commands of `bpf(2)` that aya does not offer.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// Commands of `bpf(2)`, from `linux/bpf.h`.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_TRACE_ITER: u32 = 28;
const BPF_CGROUP_SOCK_OPS: u32 = 3;
const BPF_MAP_TYPE_SOCKHASH: u32 = 18;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// `union bpf_attr`, longer than any kernel's so far: what a command writes back finds room in it.
///
/// Kernels from 6.17 on, until stable took the fix, write `query.revision` without looking at the
/// length that was passed: with a shorter attribute they overwrite 8 bytes of whatever is behind
/// it. A kernel takes an attribute that is longer than its own if the rest is zero.
#[repr(C)]
union Attr {
    all: [u64; 32],
    map_create: MapCreate,
    prog_load: ProgLoad,
    prog_query: ProgQuery,
    link_create: LinkCreate,
    iter_create: IterCreate,
}

impl Attr {
    const ZEROED: Self = Self { all: [0; 32] };
}

/// The part of `union bpf_attr` that makes a map.
#[derive(Clone, Copy)]
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

/// The part of `union bpf_attr` that loads a program.
#[derive(Clone, Copy)]
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// The part of `union bpf_attr` that asks for the programs on a cgroup.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct ProgQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// The part of `union bpf_attr` that links an iterator.
#[derive(Clone, Copy)]
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

/// `union bpf_iter_link_info`, its `task` member.
#[repr(C)]
struct TaskInfo {
    tid: u32,
    pid: u32,
    pid_fd: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct IterCreate {
    link_fd: u32,
    flags: u32,
}

/// Creates a map from cookies to sockets. It is not in the object, because each loader would then create one,
/// and fail on kernels without it.
pub(super) fn make_socket_hash(name: &str, max_entries: u32) -> io::Result<OwnedFd> {
    let mut map_name = [0; 16];
    // The last byte stays zero.
    for (to, from) in map_name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let mut attr = Attr::ZEROED;
    attr.map_create = MapCreate {
        map_type: BPF_MAP_TYPE_SOCKHASH,
        key_size: size_of::<u64>() as u32,
        value_size: size_of::<u32>() as u32,
        max_entries,
        map_flags: 0,
        inner_map_fd: 0,
        numa_node: 0,
        map_name,
    };
    bpf_fd(BPF_MAP_CREATE, &mut attr)
}

/// Loads an empty program and unloads it, to see whether programs may be loaded at all: the loader would
/// take a refusal for a missing feature.
pub(super) fn load_nothing() -> io::Result<()> {
    const CODE: [u64; 2] = [0xb7, 0x95]; // r0 = 0; exit
    let mut attr = Attr::ZEROED;
    attr.prog_load = ProgLoad {
        prog_type: BPF_PROG_TYPE_SOCKET_FILTER,
        insn_cnt: CODE.len() as u32,
        insns: CODE.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    bpf_fd(BPF_PROG_LOAD, &mut attr).map(drop)
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
    attr.link_create = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        iter_info: process.map_or(0, |_| (&raw const info) as u64),
        iter_info_len: process.map_or(0, |_| size_of::<TaskInfo>() as u32),
        pad: 0,
    };
    bpf_fd(BPF_LINK_CREATE, &mut attr)
}

/// A fresh pass over what the link is for.
pub(super) fn start_iterator(link: BorrowedFd<'_>) -> io::Result<IteratorPass> {
    let mut attr = Attr::ZEROED;
    attr.iter_create = IterCreate {
        link_fd: link.as_raw_fd() as u32,
        flags: 0,
    };
    bpf_fd(BPF_ITER_CREATE, &mut attr).map(IteratorPass)
}

/// Ids of the sock_ops programs on a cgroup itself, in the order in which they run.
pub(super) fn sock_ops_on(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    const MOST: usize = 64; // BPF_CGROUP_MAX_PROGS
    let mut ids = [0_u32; MOST];
    let mut attr = Attr::ZEROED;
    attr.prog_query = ProgQuery {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_SOCK_OPS,
        prog_ids: (&raw mut ids) as u64,
        prog_cnt: MOST as u32,
        ..ProgQuery::default()
    };
    bpf(BPF_PROG_QUERY, &mut attr)?;
    // SAFETY: all of it is initialized, and any bytes are a valid `ProgQuery`.
    let count = unsafe { attr.prog_query.prog_cnt };
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
fn bpf_fd(command: libc::c_long, attr: &mut Attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// `bpf(2)`. What `attr` points to must be valid for the lengths that it says.
fn bpf(command: libc::c_long, attr: &mut Attr) -> io::Result<libc::c_long> {
    let attr = std::ptr::from_mut(attr);
    // SAFETY: `attr` is valid for its length, and the kernel's own `union bpf_attr` is no longer.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<Attr>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

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
        assert_eq!(offset_of!(ProgQuery, revision), 56);
        let mut stack = Stack {
            attr: Attr::ZEROED,
            canary: CANARY,
        };
        assert_eq!(offset_of!(Stack, canary), size_of::<Attr>());
        assert!(56 + size_of::<u64>() <= size_of::<Attr>());
        // As those kernels do: without looking at the length.
        stack.attr.prog_query.revision = u64::MAX;
        assert_eq!(stack.canary, CANARY);
        // SAFETY: all of it is initialized.
        assert_eq!(unsafe { stack.attr.all[7] }, u64::MAX);
    }
}
