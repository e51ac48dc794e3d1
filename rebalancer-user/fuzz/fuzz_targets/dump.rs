//! Fuzz target: saved dumps.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rebalancer_user::fuzzing::dump(bytes));
