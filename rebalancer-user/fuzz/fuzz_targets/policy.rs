//! Fuzz target: policy files.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rebalancer_core::fuzzing::policy(bytes));
