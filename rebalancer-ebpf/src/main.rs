//! The rebalancer's kernel half.
//!
//! Five programs, each a short table from events to actions:
//!
//! - [`sock_ops`], on the cgroup v2 root: a socket listens, is accepted, closes. It records; it
//!   decides nothing, changes no packet, and runs for no packet.
//! - [`walk`], an iterator over the open descriptors of all processes: writes each record, its
//!   socket's live counters and who holds it into memory shared with the reader, and makes records
//!   of sockets that are older than tracking.
//! - [`messages`], on the sockets that a rule asked for, and on no other: counts what they send.
//! - [`watch`], two of them, on the cgroups of the sockets that are about to be moved, and on no
//!   other: pass on what those sockets receive and send, so that the agent knows when an answer is
//!   complete.
//!
//! Rules that hold here: another program's callback flags are never cleared, no reply is written
//! (`reply` and `args` are one union), the answer always lets everything pass, and a failure is
//! counted in `faults`, never hidden.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        internal_features,
        reason = "there is no stable atomic add on the BPF target"
    )
)]
#![cfg_attr(
    not(target_arch = "bpf"),
    expect(
        dead_code,
        reason = "the host build only checks; nothing calls the programs there"
    )
)]

mod endpoint;
mod faults;
mod maps;
mod messages;
mod process;
mod record;
mod scope;
mod sock;
mod sock_ops;
mod walk;
mod watch;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // Bounds are proven to the verifier, so no panic is reachable.
    loop {}
}

/// Helpers such as `bpf_sk_storage_get` ask for a GPL-compatible licence.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
