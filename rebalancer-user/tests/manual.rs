//! Completions and manual pages, as black boxes.

mod black_box;

use black_box::rebalancer;

#[test]
fn every_shell_gets_completions() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let (code, out, _) = rebalancer(&["completions", shell], "");
        assert_eq!(code, Some(0), "{shell}");
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
    assert_eq!(rebalancer(&["completions", "tcsh"], "").0, Some(2));
}

#[test]
fn every_command_has_a_manual_page() {
    let (code, page, _) = rebalancer(&["man"], "");
    assert_eq!(code, Some(0));
    assert!(
        page.contains(".TH rebalancer 1") && page.contains("explain"),
        "{page}"
    );
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    let (code, _, err) = rebalancer(&["man", "--dir", pages.to_str().unwrap()], "");
    assert_eq!(code, Some(0), "{err}");
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
