//! Fuzz target: HTTP/1 exchanges in segments.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rebalancer_core::fuzzing::exchange(bytes));
