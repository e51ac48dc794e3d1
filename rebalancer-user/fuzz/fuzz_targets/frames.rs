//! Fuzz target: the frames of HTTP/2 in a server's sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rebalancer_core::fuzzing::frames(bytes));
