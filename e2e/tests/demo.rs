//! What `make demo-approval` shows is what happens.
#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn an_agent_deletes_what_two_people_allowed_and_nothing_else() {
    let demo = Command::new("../e2e/demo-approval").arg("--installed").output().unwrap();
    let (printed, errors) = (String::from_utf8_lossy(&demo.stdout), String::from_utf8_lossy(&demo.stderr));
    assert!(demo.status.success(), "{printed}{errors}");
    // The script itself looks at what the server remembers, and how often people were asked.
    for words in [
        "ada (two-to-delete), bob (two-to-delete)",
        "needs the verb approve on approvalpolicies.decide.belay.dev two-to-delete",
        "there is an open invoice",
        "Succeeded",
    ] {
        assert!(printed.contains(words), "{words} is not in\n{printed}");
    }
}
