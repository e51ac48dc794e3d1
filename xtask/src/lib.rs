//! The part of xtask that tests share: the lab, a small network with pods, a client and
//! kube-proxy's rules, on this machine alone; and an API server that is none.

pub mod apiserver;
pub mod lab;
