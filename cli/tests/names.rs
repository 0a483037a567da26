//! The program under each of its names.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

fn stdout(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn as_a_plugin_of_kubectl_help_names_what_was_typed() {
    let belay = Path::new(env!("CARGO_BIN_EXE_belay"));
    assert!(stdout(belay, &["--help"]).contains("Usage: belay [OPTIONS] <COMMAND>"));
    let folder = tempfile::tempdir().unwrap();
    let plugin = folder.path().join("kubectl-belay");
    symlink(belay, &plugin).unwrap();
    assert!(stdout(&plugin, &["--help"]).contains("Usage: kubectl belay [OPTIONS] <COMMAND>"));
    let deny = stdout(&plugin, &["deny", "--help"]);
    assert!(deny.contains("Usage: kubectl belay deny [OPTIONS] --reason <REASON> <NAME>"), "{deny}");
}

#[test]
fn a_no_wants_a_reason_and_an_answer_to_an_unknown_wants_one_of_three() {
    for (arguments, word) in [
        (&["deny", "a"][..], "--reason <REASON>"),
        (&["resolve", "a"], "--happened <RESULT>|--retry|--end"),
        (&["resolve", "a", "--retry", "--end"], "cannot be used with"),
        (&["answer", "a"], "--field <NAME=VALUE>|--json <OBJECT>|--opened|--decline"),
        (&["answer", "a", "--field", "b=c", "--decline"], "cannot be used with"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_belay")).args(arguments).output().unwrap();
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && words.contains(word), "{words}");
    }
}
