//! What this process may do: capabilities, resource limits, Yama.

use std::fs;

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CapabilitySet, capabilities},
};

/// Capabilities that loading, attaching and reading need, and this process lacks.
pub fn missing_capabilities() -> Vec<&'static str> {
    const NEEDED: [(CapabilitySet, &str); 4] = [
        (CapabilitySet::BPF, "CAP_BPF"),
        (CapabilitySet::PERFMON, "CAP_PERFMON"),
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
        (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
    ];
    lacking(&NEEDED)
}

/// Capabilities that this process lacks to inspect the holders of a socket: without them, those of other
/// users are not inspected.
pub fn missing_for_owners() -> Vec<&'static str> {
    lacking(&[(CapabilitySet::SYS_PTRACE, "CAP_SYS_PTRACE")])
}

fn lacking(needed: &[(CapabilitySet, &'static str)]) -> Vec<&'static str> {
    let have = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    needed
        .iter()
        .filter(|(cap, _)| !have.contains(*cap))
        .map(|(_, name)| *name)
        .collect()
}

/// Raises RLIMIT_MEMLOCK, to which kernels before 5.11 charge maps. Later ones ignore it, so a refusal is
/// ignored too.
pub fn raise_memlock() {
    let _refused = setrlimit(
        Resource::Memlock,
        Rlimit {
            current: None,
            maximum: None,
        },
    );
}

/// Raises the limit of descriptors: each waiting move holds pidfds, and the soft limit is often 1,024.
pub fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _refused = setrlimit(Resource::Nofile, limit);
}

/// Whether this process may duplicate descriptors of others. Its own it always may, so trying proves nothing.
pub(crate) fn may_take_descriptors() -> Result<(), String> {
    let have = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    if !have.contains(CapabilitySet::SYS_PTRACE) {
        return Err("CAP_SYS_PTRACE is missing".to_owned());
    }
    // Without Yama the file is missing; its scope 3 forbids it even to root.
    match fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope") {
        Ok(scope) if scope.trim() == "3" => Err("kernel.yama.ptrace_scope is 3".to_owned()),
        _ => Ok(()),
    }
}

/// Returns free memory of this process to the system: parsing BTF leaves tens of megabytes.
pub(crate) fn return_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: without preconditions.
    let _returned_any = unsafe { libc::malloc_trim(0) };
}
