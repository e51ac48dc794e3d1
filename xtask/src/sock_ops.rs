//! Attaches a sock_ops program made of bare instructions to a cgroup: it stands for other software
//! on a node, and an empty one shows the least that such a program can cost.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

/// Commands, a type and an attach type of `linux/bpf.h`.
const MAP_CREATE: i32 = 0;
const PROG_LOAD: i32 = 5;
const LINK_CREATE: i32 = 28;
const PROG_TYPE_SOCK_OPS: u32 = 13;
const CGROUP_SOCK_OPS: u32 = 3;
const MAP_TYPE_ARRAY: u32 = 2;

/// An attached program; dropping it detaches it.
#[derive(Debug)]
pub struct SockOps {
    _link: OwnedFd,
}

impl SockOps {
    /// Loads the program and attaches it to the cgroup, beside existing programs.
    pub fn attach(cgroup: &Path, instructions: &[u64]) -> io::Result<Self> {
        let program = load(instructions)?;
        let folder = File::open(cgroup)?;
        let [program, folder] = [program.as_raw_fd(), folder.as_raw_fd()].map(|fd| fd as u32);
        let link = bpf(LINK_CREATE, &[program, folder, CGROUP_SOCK_OPS, 0])?;
        Ok(Self { _link: link })
    }

    /// Attaches a program that does nothing.
    pub fn attach_empty(cgroup: &Path) -> io::Result<Self> {
        let code = [instruction(0xb7, 0, 0, 0, 1), instruction(0x95, 0, 0, 0, 0)];
        Self::attach(cgroup, &code) // r0 = 1; exit
    }
}

/// An instruction in the kernel's format: opcode, registers, offset, immediate.
pub fn instruction(opcode: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(opcode)
        | u64::from(src << 4 | dst) << 8
        | u64::from(offset as u16) << 16
        | u64::from(immediate as u32) << 32
}

/// Creates an array map of 64-bit counters.
pub fn counters(entries: u32) -> io::Result<OwnedFd> {
    bpf(MAP_CREATE, &[MAP_TYPE_ARRAY, 4, 8, entries])
}

fn load(instructions: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let (code, license) = (instructions.as_ptr() as u64, license.as_ptr() as u64);
    let halves = |word: u64| [word as u32, (word >> 32) as u32];
    let ([code_lo, code_hi], [license_lo, license_hi]) = (halves(code), halves(license));
    let length = instructions.len() as u32;
    let attr = [
        PROG_TYPE_SOCK_OPS,
        length,
        code_lo,
        code_hi,
        license_lo,
        license_hi,
    ];
    bpf(PROG_LOAD, &attr)
}

/// `bpf(2)`, for commands that return a descriptor.
fn bpf(command: i32, attr: &[u32]) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is valid for its length, the kernel takes the rest as zero, and what it points
    // to outlives the call.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of_val(attr)) } as i32;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
