//! The house is tidy: the gate that `cargo test` runs too.

#[test]
fn nothing_is_out_of_place() {
    let root = xtask::workspace_root().expect("xtask lies in the workspace");
    let found = xtask::tidy::findings(&root).expect("a readable tree");
    let lines: Vec<String> =
        found.iter().map(|(check, finding)| format!("{check}: {}: {}", finding.place, finding.problem)).collect();
    assert!(lines.is_empty(), "\n{}", lines.join("\n"));
}
