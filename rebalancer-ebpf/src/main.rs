//! The rebalancer's kernel half.
//!
//! Five programs, each a short table from events to actions:
//!
//! - [`sock_ops`], on the cgroup v2 root: a socket listens, is accepted, closes. It records; it
//!   decides nothing, changes no packet, and runs for no packet.
//! - [`adopt`], an iterator over the sockets of a network namespace: makes records of those that are
//!   older than we.
//! - [`list`], an iterator over one shard of the records: writes what each socket says of itself
//!   at that moment into memory shared with its reader.
//! - [`messages`], on the sockets that a rule asked for, and on no other: counts what they send.
//! - [`watch`], on the sockets that are about to be moved, and on no other: hears whether what they
//!   receive is HTTP/1.
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

mod adopt;
mod endpoint;
mod faults;
mod list;
mod maps;
mod messages;
mod record;
mod scope;
mod sock;
mod sock_ops;
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
