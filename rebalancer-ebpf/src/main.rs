//! The rebalancer's kernel half.
//!
//! Five programs, each a short table from events to actions:
//!
//! - [`sock_ops`], on the cgroup v2 root, when a socket listens, is accepted or closes. It records;
//!   it makes no
//!   decisions, changes no packet, and does not run per packet.
//! - [`walk`], an iterator over the open descriptors of all processes: writes each record, its
//!   socket's live
//!   counters and the process that holds it to memory shared with the reader, and creates records of sockets
//!   that are older than tracking.
//! - [`messages`], only on the sockets that the agent has added: counts their sends, or finds the
//!   boundaries of HTTP/2 in them and tells the client to leave, once the agent wants it to.
//! - [`sniff`], two programs, only on the cgroups of sockets that are being moved: copy the
//!   segments of those
//!   sockets to the agent, so that it knows when a response is complete.
//!
//! Invariants: no callback flag of another program is cleared; no reply is written (`reply` and
//! `args` are a union); nothing that a server sends is changed, and nothing but [`notice`]'s constant
//! is added to it; everything passes, but for a send in front of which the kernel has made room that
//! cannot be written to ([`notice::Spoilt`]); every failure of tracking is counted in `faults`.
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
mod notice;
mod process;
mod record;
mod scope;
mod sniff;
mod sock;
mod sock_ops;
mod walk;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // Bounds are proven to the verifier, so no panic is reachable.
    loop {}
}

/// Helpers such as `bpf_sk_storage_get` require a GPL-compatible licence.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
