//! Fuzz target: the kernel half's records.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rebalancer_user::fuzzing::records(bytes));
