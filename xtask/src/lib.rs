//! The part of xtask that tests share: the lab, a small network with pods, a client and
//! kube-proxy's rules, on this machine alone; an API server that is none; and other programs that
//! a node may have.

pub mod apiserver;
pub mod lab;
pub mod sock_ops;
