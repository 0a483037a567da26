#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::cost::Usage;
use crate::elicitation::{InputRequired, Inputs, Inquiry, Round};
use crate::event::{
    Answer, Approver, Ask, AskPurpose, DenyReason, Finish, Item, ListedOperation, Listing, ModelResponse,
    NotSentReason, Record, ToolResult,
};
use crate::judgement::{Judged, Judgement, PolicyRequirement};
use crate::plan::Plan;

fn run() -> ObjectId {
    ObjectId { namespace: "team".into(), name: "triage-1".into(), uid: "run-uid".into() }
}

fn plan() -> Plan {
    serde_json::from_value(json!({
        "version": 1, "run": run(), "agent": {"namespace": "team", "name": "triage", "uid": "agent-uid"},
        "agentGeneration": 1, "input": "go",
        "model": {"name": "m", "api": "Scripted", "model": "m", "temperature": 0.5, "timeouts":
            {"connectSeconds": 1, "firstByteSeconds": 1, "idleSeconds": 1, "totalSeconds": 1}},
        "tools": [{"name": "files", "uid": "files-uid", "url": "http://files/mcp", "callTimeoutSeconds": 5,
            "operations": [{"name": "read", "modelName": "files__read", "definition": Digest::of(b"definition")}]}],
        "limits": {"steps": 2, "activeSeconds": 60, "waitSeconds": 60},
    }))
    .unwrap()
}

fn proposed(call_id: &str, operation: &str) -> Event {
    let (plan, args) = (plan(), json!({"path": "ä/README.md"}));
    let definition = Digest::of(b"definition");
    let digest = CallBinding::new(&plan, &plan.tools[0], definition, operation, &args).digest().unwrap();
    let call = ProposedCall { tool: "files".into(), operation: operation.into(), args, definition, digest };
    Event::CallProposed { call_id: call_id.into(), attempt: 1, call }
}

fn decided(call_id: &str, verdict: Verdict) -> Event {
    Event::CallDecided { call_id: call_id.into(), attempt: 1, verdict, judged: None }
}

fn allowed(proposal: &Event) -> Verdict {
    match proposal {
        Event::CallProposed { call, .. } => Verdict::Allowed { digest: call.digest },
        other => panic!("{other:?}"),
    }
}

/// A run with one call of each sort: observed, denied, not sent, and one under way.
fn events() -> Vec<Event> {
    let asks = |id: &str| Item::ToolCall {
        call_id: id.into(),
        provider_id: "x".into(),
        name: "files__read".into(),
        arguments: "{}".into(),
    };
    let response =
        ModelResponse::new(["c1", "c2", "c3", "c4"].map(asks).to_vec(), Finish::ToolCalls, Usage::default(), 1);
    let listed = ListedOperation { name: "read".into(), definition: Digest::of(b"definition") };
    let result = ToolResult {
        is_error: false,
        content: "text\nand \"more\"".into(),
        truncated_from_bytes: None,
        artifacts: Vec::new(),
    };
    let denial = Verdict::Denied { reason: DenyReason::NotListed, message: "no".into() };
    let not_sent = |id: &str| Event::CallNotSent {
        call_id: id.into(),
        attempt: 1,
        reason: NotSentReason::Unreachable,
        message: "refused".into(),
    };
    let (first, third, fourth) = (proposed("c1", "read"), proposed("c3", "read"), proposed("c4", "read"));
    vec![
        Event::RunAccepted { plan_digest: plan().digest().unwrap(), plan: Box::new(plan()) },
        Event::EpochOpened { epoch: 1, pod_name: "belay-run-triage-1".into() },
        Event::InstanceClaimed { epoch: 1, instance: "i".into(), pod_uid: "p".into() },
        Event::ToolsListed { tool: "files".into(), listing: Listing::Listed(vec![listed]) },
        Event::ModelRequested { step: 1, attempt: 1, request: Digest::zero(), reserved_tokens: 10 },
        Event::ModelResponded { step: 1, attempt: 1, response },
        first.clone(),
        decided("c1", allowed(&first)),
        Event::CallObserved { call_id: "c1".into(), attempt: 1, result, milliseconds: 2 },
        proposed("c2", "delete"),
        decided("c2", denial),
        third.clone(),
        decided("c3", allowed(&third)),
        not_sent("c3"),
        fourth.clone(),
        decided("c4", allowed(&fourth)),
    ]
}

fn seal(events: Vec<Event>) -> Vec<SealedRecord> {
    let mut head = Head::empty();
    let mut records = Vec::new();
    for event in events {
        let sealed = head.seal(event, 1000 + i64::try_from(head.seq).unwrap()).unwrap();
        head = sealed.head();
        records.push(sealed);
    }
    records
}

fn file_of(events: Vec<Event>) -> Vec<u8> {
    write("journal-id", &run(), &seal(events))
}

fn fault(file: &[u8]) -> Fault {
    verify(file).unwrap_err()
}

/// The file with its last line made anew, as someone would who knows the format but not the chain.
fn ended_anew(file: &[u8]) -> Vec<u8> {
    let text = file.strip_suffix(b"\n").unwrap();
    let cut = text.iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    let mut end: EndLine = serde_json::from_slice(&text[cut..]).unwrap();
    end.digest = Digest::of(&file[..cut]);
    [&file[..cut], &line(&end)].concat()
}

fn lines(file: &[u8]) -> Vec<String> {
    std::str::from_utf8(file).unwrap().lines().map(str::to_owned).collect()
}

fn joined(lines: &[String]) -> Vec<u8> {
    lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect()
}

#[test]
fn an_export_verifies_and_tells_each_effect() {
    let records = seal(events());
    let verified = verify(&write("journal-id", &run(), &records)).unwrap();
    assert_eq!(verified.header, Header { belay_journal_export: 1, journal: "journal-id".into(), run: run() });
    assert_eq!(verified.head, records.last().unwrap().head());
    let folded = RunState::replay(records.iter().map(|sealed| &sealed.record)).unwrap();
    assert_eq!(*verified.state, folded);
    let rows: Vec<_> = verified
        .effects
        .iter()
        .map(|row| {
            (row.call_id.as_str(), row.operation.as_str(), row.permitted_by.clone(), row.outcome, row.settled.clone())
        })
        .collect();
    let by = |by: &str, at| Some(Settled { by: by.into(), at });
    let denied = PermittedBy::Nobody(DenyReason::NotListed);
    let not_sent = EffectOutcome::NotSent(NotSentReason::Unreachable);
    assert_eq!(
        rows,
        [
            ("c1", "read", PermittedBy::AllowList, EffectOutcome::Observed, by("runner", 1008)),
            ("c2", "delete", denied, EffectOutcome::Denied, by("gate", 1010)),
            ("c3", "read", PermittedBy::AllowList, not_sent, by("runner", 1013)),
            ("c4", "read", PermittedBy::AllowList, EffectOutcome::UnderWay, None),
        ]
    );
}

#[test]
fn whoever_said_no_is_told_with_the_denial() {
    let mut all = events();
    let judgement = Judgement::Deny { policy: "careful".into(), rule: Some("no-force".into()), reason: "never".into() };
    let judged = Some(Box::new(Judged { judgement, opinions: Vec::new(), grants: Vec::new() }));
    let denied = |reason, message: &str| Verdict::Denied { reason, message: message.into() };
    let verdict = denied(DenyReason::Policy, "never");
    all[10] = Event::CallDecided { call_id: "c2".into(), attempt: 1, verdict, judged };
    let Some(Event::CallDecided { verdict: Verdict::Allowed { digest }, .. }) = all.pop() else { panic!() };
    let wanted =
        json!({"policy": "owners", "generation": 1, "quorum": 1, "separationOfDuty": false, "expiresAfterSeconds": 60});
    let requirements: Vec<PolicyRequirement> = vec![serde_json::from_value(wanted).unwrap()];
    let ask = Ask {
        name: "q".into(),
        purpose: AskPurpose::Call,
        call_id: "c4".into(),
        attempt: 1,
        nonce: "n".into(),
        expires_at: 100_000,
        digest: Digest::zero(),
        call: Some(digest),
        requirements: requirements.clone(),
        guard: None,
        question: None,
    };
    all.extend([
        decided("c4", Verdict::Asked { requirements }),
        Event::AskOpened { ask },
        Event::AskPosted { name: "q".into(), uid: "u".into() },
        Event::AskSettled { name: "q".into(), answer: Answer::Denied { by: "ada".into(), reason: "no".into() } },
        decided("c4", denied(DenyReason::Refused, "ada says no")),
    ]);
    let verified = verify(&file_of(all)).unwrap();
    let denied = verified.effects.iter().filter(|row| row.outcome == EffectOutcome::Denied);
    let by = |row: &Effect| (row.call_id.clone(), row.settled.as_ref().unwrap().by.clone());
    let told: Vec<_> = denied.map(by).collect();
    assert_eq!(told, [("c2".to_owned(), "policy careful/no-force".to_owned()), ("c4".to_owned(), "ada".to_owned())]);
}

#[test]
fn an_edited_line_is_named_with_its_run() {
    let mut edited = lines(&file_of(events()));
    edited[9] = edited[9].replace("more", "less");
    let fault = fault(&joined(&edited));
    assert!(matches!(fault.wrong, Wrong::Chain(crate::chain::ChainError::Changed { seq: 9, .. })), "{fault}");
    assert_eq!(*fault.place, Place { line: 10, run: Some(run()), seq: Some(9) });
    assert!(fault.to_string().starts_with("line 10 (record 9 of run team/triage-1, run-uid): "), "{fault}");
}

#[test]
fn a_line_taken_out_moved_or_doubled_is_named() {
    let whole = lines(&file_of(events()));
    let mut out = whole.clone();
    out.remove(5);
    assert!(matches!(fault(&joined(&out)).wrong, Wrong::Gap { expected: 5, found: 6 }));
    let mut moved = whole.clone();
    moved.swap(5, 6);
    assert!(matches!(fault(&joined(&moved)).wrong, Wrong::Gap { expected: 5, found: 6 }));
    let mut doubled = whole.clone();
    doubled.insert(6, whole[5].clone());
    assert!(matches!(fault(&joined(&doubled)).wrong, Wrong::Gap { expected: 6, found: 5 }));
    let mut last = whole.clone();
    last.remove(whole.len() - 2);
    assert!(matches!(fault(&joined(&last)).wrong, Wrong::Head { stated: 16, found: 15 }));
}

#[test]
fn what_comes_after_the_end_and_a_header_of_another_journal_are_noticed() {
    let mut whole = lines(&file_of(events()));
    let other = whole[0].replace("journal-id", "another");
    whole.push(whole[1].clone());
    assert_eq!(fault(&joined(&whole)).wrong, Wrong::AfterEnd);
    whole.pop();
    whole[0] = other;
    assert_eq!(fault(&joined(&whole)).wrong, Wrong::FileDigest);
}

#[test]
fn other_files_and_other_versions_are_told_apart() {
    assert!(matches!(fault(b"not an export\n").wrong, Wrong::Header(_)));
    assert!(matches!(fault(b"").wrong, Wrong::Truncated { records: 0 }));
    let newer = String::from_utf8(file_of(events())).unwrap().replacen("Export\":1", "Export\":2", 1);
    assert_eq!(fault(newer.as_bytes()).wrong, Wrong::Version { found: 2 });
    assert_eq!(fault(&file_of(vec![])).wrong, Wrong::Empty);
}

#[test]
fn records_that_are_chained_but_not_an_operators_own_are_refused() {
    let mut illegal = events();
    illegal.remove(7);
    assert!(matches!(fault(&file_of(illegal)).wrong, Wrong::Illegal(_)));

    let mut other = events();
    let mut another = plan();
    another.input = "something else".into();
    other[0] = Event::RunAccepted { plan_digest: plan().digest().unwrap(), plan: Box::new(another) };
    assert!(matches!(fault(&file_of(other)).wrong, Wrong::PlanDigest { .. }));

    let mut foreign = events();
    let mut another = plan();
    another.run.uid = "other".into();
    foreign[0] = Event::RunAccepted { plan_digest: another.digest().unwrap(), plan: Box::new(another) };
    assert!(matches!(fault(&file_of(foreign)).wrong, Wrong::OtherRun { .. }));

    let mut swapped = events();
    if let Event::CallProposed { call, .. } = &mut swapped[6] {
        call.args = json!({"path": "/etc/passwd"});
    }
    assert!(matches!(fault(&file_of(swapped)).wrong, Wrong::CallDigest { .. }));

    let mut unlisted = events();
    unlisted[10] = decided("c2", allowed(&unlisted[9]));
    let fault = fault(&file_of(unlisted));
    assert!(matches!(&fault.wrong, Wrong::NotInPlan { operation, .. } if operation == "files/delete"), "{fault}");
}

#[test]
fn a_record_of_a_kind_that_is_not_known_yet_is_named() {
    let mut records = seal(events());
    let head = records.last().unwrap().head();
    let bytes = br#"{"at":2000,"event":{"kind":"Teleported"},"seq":17}"#.to_vec();
    let hash = Digest::chained(head.hash, &bytes);
    let record = Record { seq: 17, at: 2000, event: Event::CancelRequested {} };
    records.push(SealedRecord { record, bytes, hash });
    let fault = fault(&write("journal-id", &run(), &records));
    assert!(fault.to_string().contains("record 17 cannot be read: unknown variant `Teleported`"), "{fault}");
}

proptest! {
    #[test]
    fn no_byte_can_be_another(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut file = file_of(events());
        let at = at.index(file.len());
        prop_assume!(file[at] != byte);
        file[at] = byte;
        prop_assert!(verify(&file).is_err());
    }

    /// The chain, not only the digest at the end, is what finds it.
    #[test]
    fn a_byte_changed_under_a_digest_made_anew_changes_no_meaning(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let whole = file_of(events());
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        // Without the end of the last record's line: the line that is made anew would not be one any more.
        let last = whole.len() - lines(&whole).last().unwrap().len() - 2;
        let mut file = whole.clone();
        file[first + at.index(last - first)] = byte;
        if let Ok(verified) = verify(&ended_anew(&file)) {
            prop_assert_eq!(verified, verify(&whole).unwrap());
        }
    }

    #[test]
    fn a_file_that_breaks_off_anywhere_is_refused(at in any::<prop::sample::Index>()) {
        let file = file_of(events());
        prop_assert!(verify(&file[..at.index(file.len())]).is_err());
    }
}

/// What follows `events` where the server of c4 asked, ada answered, and it is permitted again as this.
fn answered_and_permitted(digest: impl Fn(CallBinding<'_>, Option<Digest>) -> Digest) -> Vec<Event> {
    let asks = json!({"message": "?", "requestedSchema": {"type": "object", "properties": {"a": {"type": "string"}}}});
    let required = InputRequired::in_call(vec![Inquiry::read(&asks).unwrap()], "later");
    let content = Some(r#"{"a":"x"}"#.to_owned());
    let round = Round { required: required.clone(), answers: vec![content.clone()] };
    let ask = Ask {
        name: "q".into(),
        purpose: AskPurpose::Question,
        call_id: "c4".into(),
        attempt: 1,
        nonce: "n".into(),
        expires_at: 100_000,
        digest: Digest::zero(),
        call: None,
        requirements: Vec::new(),
        guard: None,
        question: Some(0),
    };
    let answer = Answer::Answered { content, by: vec![Approver { policy: "default".into(), by: "ada".into() }] };
    let Event::CallProposed { mut call, .. } = proposed("c4", "read") else { panic!() };
    let plan = plan();
    let binding = CallBinding::new(&plan, &plan.tools[0], call.definition, "read", &call.args);
    let inputs = Inputs { rounds: vec![round] }.digest().unwrap();
    call.digest = digest(binding, inputs);
    let verdict = Verdict::Allowed { digest: call.digest };
    let mut all = events();
    all.extend([
        Event::CallInputRequired { call_id: "c4".into(), attempt: 1, required: Box::new(required), milliseconds: 1 },
        Event::AskOpened { ask },
        Event::AskPosted { name: "q".into(), uid: "u".into() },
        Event::AskSettled { name: "q".into(), answer },
        Event::CallProposed { call_id: "c4".into(), attempt: 2, call },
        Event::CallDecided { call_id: "c4".into(), attempt: 2, verdict, judged: None },
    ]);
    all
}

#[test]
fn a_permit_after_an_answer_binds_the_answer() {
    let bound = answered_and_permitted(|binding, inputs| CallBinding { inputs, ..binding }.digest().unwrap());
    let verified = verify(&file_of(bound)).unwrap();
    assert_eq!(verified.effects.last().unwrap().attempt, 2);
    let unbound = answered_and_permitted(|binding, _| binding.digest().unwrap());
    assert!(matches!(fault(&file_of(unbound)).wrong, Wrong::CallDigest { .. }));
}

#[test]
fn what_a_child_came_to_is_the_effect_of_its_call_and_is_told_as_the_childs() {
    let mut all = events();
    let Some(Event::RunAccepted { plan_digest, plan }) = all.first_mut() else { panic!() };
    let agent = json!({"name": "helper", "description": "", "limits": plan.limits, "priced": true});
    plan.tools[0].agent = serde_json::from_value(agent).unwrap();
    *plan_digest = plan.digest().unwrap();
    let child = crate::event::Child { name: "triage-1-c4-x".into(), agent: "helper".into(), limits: plan.limits };
    let result =
        ToolResult { is_error: false, content: "found".into(), truncated_from_bytes: None, artifacts: Vec::new() };
    let end = crate::event::ChildEnd { outcome: None, result, tokens: 5, cost_micro_usd: 0 };
    let (call_id, name) = ("c4".to_owned(), child.name.clone());
    all.extend([
        Event::ChildOpened { call_id: call_id.clone(), attempt: 1, child },
        Event::ChildPosted { name: name.clone(), uid: "u".into() },
        Event::ChildEnded { call_id, attempt: 1, name, end: Box::new(end) },
    ]);
    let verified = verify(&file_of(all)).unwrap();
    let last = verified.effects.last().unwrap();
    let by = last.settled.as_ref().map(|settled| settled.by.as_str());
    assert_eq!((last.outcome, by), (EffectOutcome::Observed, Some("agentrun triage-1-c4-x")));
}
