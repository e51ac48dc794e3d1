//! Completions and manual pages, as black boxes.

use crate::run;

#[test]
fn every_shell_gets_completions() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let out = run(&["completions", shell]).prints();
        for word in [
            "explain",
            "--snapshot",
            "completions",
            "status",
            "events",
            "pause",
            "resume",
            "top",
            "probe",
            "--metrics-address",
            "--run-dir",
        ] {
            let known = out.contains(word.trim_start_matches('-'));
            assert!(known, "{shell} does not know {word}");
        }
    }
    run(&["completions", "tcsh"]).fails(2);
}

#[test]
fn every_command_has_a_manual_page() {
    let page = run(&["man"]).prints();
    assert!(
        page.contains(".TH rebalancer 1") && page.contains("explain"),
        "{page}"
    );
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    assert_eq!(run(&["man", "--dir", pages.to_str().unwrap()]).code, 0);
    for name in [
        "rebalancer",
        "rebalancer-plan",
        "rebalancer-status",
        "rebalancer-events",
        "rebalancer-pause",
        "rebalancer-resume",
        "rebalancer-probe",
        "rebalancer-top",
        "rebalancer-policy-explain",
    ] {
        let page = std::fs::read_to_string(pages.join(format!("{name}.1"))).unwrap();
        assert!(page.contains("SYNOPSIS"), "{name}: {page}");
    }
}
