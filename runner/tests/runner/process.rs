//! The process itself: what is left of it when it breaks, and what others may read of it meanwhile.

use std::process::Stdio;

use nix::sys::prctl::get_dumpable;
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::grpc::Operator;

/// The value that the process of a test breaks with.
const VALUE: &str = "BELAY_TEST_VALUE";

#[tokio::test]
async fn a_runner_leaves_no_core() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let runner = Command::new(env!("CARGO_BIN_EXE_belay-runner"))
        .env_clear()
        .env("BELAY_OPERATOR_ADDR", url)
        .env("BELAY_OPERATOR_CA_PEM", Operator::start().await.config.operator.ca_pem)
        .env("HOSTNAME", "belay-run-x")
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (_stream, _) = listener.accept().await.unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", runner.id().unwrap())).unwrap();
    let core: Vec<&str> =
        limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap().split_whitespace().collect();
    assert_eq!(core, ["0", "0", "bytes"], "neither now nor if it asked for more");
}

/// The process of the test below.
#[test]
#[ignore = "started by the test below"]
fn one_that_breaks() {
    belay_runner::process::keep_to_itself().unwrap();
    println!("dumpable: {}", get_dumpable().unwrap());
    let _ = std::panic::catch_unwind(|| panic!("words of the program"));
    let value = std::env::var(VALUE).unwrap();
    // As the standard library words it: with the text that was cut.
    let _ = &value[..value.len() - 1];
}

#[tokio::test]
async fn a_panic_says_where_it_was_and_nothing_that_was_put_together() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["process::one_that_breaks", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(VALUE, "hunter2-sword-ä")
        .output()
        .await
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success() && said.contains("dumpable: false"), "{said}");
    assert!(said.contains(": words of the program\n"), "{said}");
    assert_eq!(said.matches("error   the runner broke at ").count(), 2, "{said}");
    assert_eq!(said.matches("process.rs:").count(), 2, "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}
