//! The binary as a black box: exit code, standard output, standard error.

use assert_cmd::Command;

pub(crate) fn rebalancer(arguments: &[&str], stdin: &str) -> (Option<i32>, String, String) {
    let output = Command::cargo_bin("rebalancer")
        .unwrap()
        .args(arguments)
        .write_stdin(stdin)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}
