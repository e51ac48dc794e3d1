//! Fuzz target: the reader of the kernel's BTF.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rebalancer_user::fuzzing::btf(bytes));
