//! What tests of other crates use of xtask: the lab (a small network with pods, a client and
//! kube-proxy's rules), a fake API server, sock_ops programs like those that other software loads
//! on a node, and the BPF objects that a process holds. With these, what the suites share.

pub mod apiserver;
pub mod bpf_objects;
pub mod command;
pub mod lab;
pub mod netns;
pub mod process;
pub mod sock_ops;
pub mod wait;
