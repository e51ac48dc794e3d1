//! Fuzz target: answers of sock_diag.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rebalancer_user::fuzzing::netlink(bytes));
