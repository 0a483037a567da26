//! What `make demo-approval` and `make demo-real` show is what happens.
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

#[test]
fn without_a_key_the_quickstart_runs_on_a_small_real_model_and_its_trace_is_shown() {
    let mut demo = Command::new("../e2e/demo-real");
    let demo = demo.arg("--installed").env_remove("ANTHROPIC_API_KEY").env_remove("OPENAI_API_KEY").output().unwrap();
    let (printed, errors) = (String::from_utf8_lossy(&demo.stdout), String::from_utf8_lossy(&demo.stderr));
    assert!(demo.status.success(), "{printed}{errors}");
    for words in ["Succeeded", "invoke_agent quickstart-real", "chat smollm2", "start a pod", "models  1 step in "] {
        assert!(printed.contains(words), "{words} is not in\n{printed}");
    }
}
