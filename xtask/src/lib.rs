//! The part of xtask that tests share: the lab, a small network with pods, a client and
//! kube-proxy's rules, on this machine alone; an API server that is none; other programs that a node
//! may have; and what a process holds of BPF.

pub mod apiserver;
pub mod held;
pub mod lab;
pub mod sock_ops;
