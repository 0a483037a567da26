#![allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing)]

use belay_protocol::chain::Head;
use belay_protocol::event::Event;
use belay_protocol::export::write;
use serde_json::{Value, json};

use super::*;

const UID: &str = "3f2a9c1e-0b6d-4c7e-9a51-7d2f60c4e8ab";

/// A run that waits for ada, whose answer is not there yet where `waits`.
fn export(waits: bool) -> Vec<u8> {
    let run = ObjectId { namespace: "team".into(), name: "triage-1".into(), uid: UID.into() };
    let digest = belay_protocol::Digest::zero().to_string();
    let plan: belay_protocol::Plan = serde_json::from_value(json!({
        "version": 1, "run": run, "agent": {"namespace": "team", "name": "triage", "uid": "agent-uid"},
        "agentGeneration": 1, "input": "go", "model": {"name": "m", "api": "Messages", "model": "large-5",
            "prices": {"input": 3_000_000, "output": 15_000_000},
            "timeouts": {"connectSeconds": 1, "firstByteSeconds": 1, "idleSeconds": 1, "totalSeconds": 1}},
        "tools": [{"name": "files", "uid": "u", "url": "http://files/mcp", "callTimeoutSeconds": 5,
            "operations": [{"name": "delete", "modelName": "files__delete", "definition": digest}]}],
        "limits": {"steps": 9, "activeSeconds": 60, "waitSeconds": 60},
    }))
    .unwrap();
    let plan_digest = plan.digest().unwrap();
    let tool = &plan.tools[0];
    let args = json!({"path": "x"});
    let binding = belay_protocol::call::CallBinding::new(&plan, tool, tool.operations[0].definition, "delete", &args);
    let call = binding.digest().unwrap();
    let requirement = json!({"policy": "careful", "generation": 1, "quorum": 1, "separationOfDuty": false,
        "expiresAfterSeconds": 60});
    let proposal = json!({"kind": "CallProposed", "callId": "c1", "attempt": 1, "call":
        {"tool": "files", "operation": "delete", "args": args, "definition": digest, "digest": call}});
    let mut events = vec![
        (0, json!({"kind": "RunAccepted", "planDigest": plan_digest, "plan": plan})),
        (100, json!({"kind": "EpochOpened", "epoch": 1, "podName": "belay-run-triage-1"})),
        (500, json!({"kind": "InstanceClaimed", "epoch": 1, "instance": "i", "podUid": "p"})),
        (600, json!({"kind": "ModelRequested", "step": 1, "attempt": 1, "request": digest, "reservedTokens": 9})),
        (
            2600,
            json!({"kind": "ModelResponded", "step": 1, "attempt": 1, "response": {"finish": "ToolCalls",
            "items": [{"kind": "ToolCall", "callId": "c1", "providerId": "", "name": "files__delete", "arguments": "{}"}],
            "usage": {"inputTokens": 1000, "cachedInputTokens": 400, "outputTokens": 10}, "milliseconds": 1990, "firstChunkMilliseconds": 450}}),
        ),
        (2600, proposal.clone()),
        (
            2600,
            json!({"kind": "CallDecided", "callId": "c1", "attempt": 1, "verdict": {"asked": {"requirements": [requirement]}}}),
        ),
        (
            2700,
            json!({"kind": "AskOpened", "ask": {"name": "triage-1-c1", "purpose": "Call", "callId": "c1", "attempt": 1,
            "nonce": "n", "expiresAt": 60_000, "digest": digest, "call": call, "requirements": [requirement]}}),
        ),
        (2800, json!({"kind": "AskPosted", "name": "triage-1-c1", "uid": "a"})),
    ];
    if !waits {
        events.extend([
            (
                9000,
                json!({"kind": "AskSettled", "name": "triage-1-c1", "answer":
                {"Denied": {"by": "ada\u{202e}\u{1b}[2J", "reason": "no"}}}),
            ),
            (
                9000,
                json!({"kind": "CallDecided", "callId": "c1", "attempt": 1, "verdict":
                {"denied": {"reason": "Refused", "message": "ada says no"}}}),
            ),
            (9500, json!({"kind": "RunEnded", "end": {"outcome": "Cancelled", "reason": "Cancelled", "message": ""}})),
            (10_000, json!({"kind": "EpochEnded", "epoch": 1, "cause": "Cancelled", "activeMilliseconds": 1})),
        ]);
    }
    let (mut head, mut records) = (Head::empty(), Vec::new());
    for (at, event) in events {
        let event: Event = serde_json::from_value(event.clone()).unwrap_or_else(|e| panic!("{event}: {e}"));
        let sealed = head.seal(event, at).unwrap();
        head = sealed.head();
        records.push(sealed);
    }
    write("journal-id", &run, &records)
}

fn lines(waits: bool, page: Page) -> String {
    waterfall::render(&read(&export(waits)).unwrap(), page).join("\n")
}

#[test]
fn a_run_is_drawn_line_by_line() {
    let drawn = lines(false, Page::Plain);
    let expected = "\
run team/triage-1, trace 3f2a9c1e0b6d4c7e9a517d2f60c4e8ab

  START     TOOK WHAT                                                   TOKENS       COST DETAIL
    0ms     9.5s invoke_agent triage   ============================       1010   $0.00315 Cancelled (Cancelled)
    0ms    100ms   wait for a pod      =                                                  queued
  100ms     9.9s   epoch               ==============================                     1, pod belay-run-triage-1, Cancelled
  100ms    400ms     start a pod       =
  600ms     2.0s   chat large-5         ======                            1010   $0.00315 step 1: ToolCalls, begun after 450ms
   2.6s      0ms   decide files/delete        |                                           c1 people are asked, for policy careful
   2.7s     6.3s   ask people                  ===================                        c1 triage-1-c1: Denied by ada\\u{202e}\\u{1b}[2J
   9.0s      0ms   decide files/delete                            |                       c1 denied: Refused: ada says no

models  1 step in 2.0s
tools   0 calls in 0ms, 1 denied
people  asked 1 time, for 6.3s
pods    1 epoch, 100ms without a pod
tokens  1000 in (400 from a cache), 10 out; $0.00315";
    assert_eq!(drawn, expected, "\n{drawn}");
}

#[test]
fn a_terminals_width_is_kept_and_nothing_in_a_name_moves_its_cursor() {
    for width in [1, 20, 60, 80, 100, 200] {
        for line in lines(false, Page::Terminal { width }).lines() {
            let wide = console::measure_text_width(line);
            // Times, tokens and cost are never cut.
            assert!(wide <= width.max(48), "{wide} on {width}: {line}");
            assert!(!line.contains(['\u{1b}', '\u{202e}']), "{line:?}");
        }
    }
    assert!(lines(false, Page::Plain).contains("ada\\u{202e}\\u{1b}[2J"));
}

#[test]
fn what_has_not_ended_is_open_up_to_the_newest_record() {
    let drawn = lines(true, Page::Plain);
    let line = |what: &str| drawn.lines().find(|line| line.contains(what)).unwrap().to_owned();
    for what in ["invoke_agent triage", "epoch", "ask people"] {
        assert!(line(what).contains(" open ") && line(what).contains('>'), "{}", line(what));
    }
    assert!(line("ask people").ends_with("c1 triage-1-c1: nobody has answered"), "{drawn}");
    assert!(line("people  asked").ends_with("1 time, for 100ms"), "{drawn}");
}

#[test]
fn machines_get_ids_attributes_and_sums() {
    let json = json::render(&read(&export(false)).unwrap());
    assert!(json.contains("ada\\u202e\\u001b[2J") && !json.contains(['\u{1b}', '\u{202e}']), "{json}");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["traceId"], UID.replace('-', ""));
    let spans = json["spans"].as_array().unwrap();
    let chat = spans.iter().find(|span| span["name"] == "chat large-5").unwrap();
    assert_eq!((&chat["startedAt"], &chat["milliseconds"]), (&json!("1970-01-01T00:00:00.600Z"), &json!(2000)));
    assert_eq!(chat["parentSpanId"], spans[0]["spanId"]);
    assert_eq!(chat["attributes"]["belay.cost.usd_micros"], 3150);
    assert_eq!(chat["attributes"]["gen_ai.response.time_to_first_chunk"], 0.45);
    let totals = json!({"steps": 1, "failedModelRequests": 0, "modelMilliseconds": 2000, "calls": 0, "callMilliseconds": 0,
        "denied": 1, "asked": 1, "askedMilliseconds": 6300, "epochs": 1, "restMilliseconds": 100, "costUsdMicros": 3150,
        "usage": {"inputTokens": 1000, "cachedInputTokens": 400, "outputTokens": 10}});
    assert_eq!(json["totals"], totals);
}

#[test]
fn a_file_that_was_changed_is_no_trace() {
    let mut file = export(false);
    let place = file.len() / 2;
    file[place] ^= 1;
    assert!(read(&file).is_err());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    std::fs::write(&path, file).unwrap();
    assert!(of_file(&path, Output::Text).unwrap_err().to_string().contains("x.jsonl"));
}

#[test]
fn times_and_money_are_as_long_as_they_need_to_be() {
    let times = [(7, "7ms"), (1_940, "1.9s"), (123_000, "2m03s"), (7_500_000, "2h05m"), (260_000_000, "3d00h")];
    for (milliseconds, words) in times {
        assert_eq!(waterfall::duration(milliseconds), words);
    }
    for (micros, words) in [(0, "$0.00"), (1, "$0.000001"), (1_500_000, "$1.50"), (12_345_678, "$12.345678")] {
        assert_eq!(waterfall::money(micros), words);
    }
}
