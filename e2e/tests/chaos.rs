//! Belay with its world breaking around it: pods, processes, the operator, its volume, the API server. What truly
//! arrived is compared with the journals of all runs. One test at a time: each breaks what the others need.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use belay_e2e::TempNamespace;
use belay_e2e::chaos::Dice;
use belay_e2e::chaos::effects::{check, events, verified_export};
use belay_e2e::chaos::node::{self, NoApiServer, Process};
use belay_e2e::chaos::operator::{self, OnSmallVolume};
use belay_e2e::counter::{arrived, call, start};
use belay_e2e::kubectl::belay;
use belay_e2e::namespace::condition;
use serde_json::{Value, json};

/// Short, so that a quarantine is: 10 s for a permit, this, and 30 s.
const CALL_TIMEOUT_SECONDS: u64 = 8;
const QUARANTINE: Duration = Duration::from_secs(10 + CALL_TIMEOUT_SECONDS + 30);
const A_MINUTE: Duration = Duration::from_mins(1);
const CHAOS: Duration = Duration::from_mins(2);
const AT_ONCE: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(20);
const BY_FORCE: &[&str] = &["--grace-period=0", "--force"];

fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    operator::wait_ready().unwrap();
    guard
}

fn with_counter(prefix: &str) -> TempNamespace {
    let namespace = TempNamespace::enabled(prefix).unwrap();
    start(&namespace).unwrap();
    let patch = json!({"spec": {"callTimeoutSeconds": CALL_TIMEOUT_SECONDS}}).to_string();
    namespace.kubectl.run(&["patch", "tool", "counter", "--type=merge", "-p", &patch]).unwrap();
    namespace
}

/// A turn of a scripted model that comes after a time.
fn turn(after: Duration, calls: &[Value]) -> Value {
    json!({"delayMilliseconds": u64::try_from(after.as_millis()).unwrap(), "toolCalls": calls})
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// An Agent for each of these runs, with turns of its own and a last word, and the runs.
fn begin(namespace: &TempNamespace, runs: &[(String, Vec<Value>)]) {
    let mut objects = Vec::new();
    for (name, turns) in runs {
        let turns = [&turns[..], &[json!({"text": "done"})]].concat();
        let meta = json!({"name": name});
        objects.push(json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Model", "metadata": meta,
            "spec": {"api": "Scripted", "model": "s", "scripted": {"turns": turns}}}));
        objects.push(json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Agent", "metadata": meta,
            "spec": {"modelRef": meta, "tools": [{"name": "counter", "operations": ["add", "put", "drop"]}]}}));
        objects.push(json!({"apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun", "metadata": meta,
            "spec": {"agentRef": meta, "input": "go"}}));
    }
    let list: Vec<String> = objects.iter().map(Value::to_string).collect();
    namespace.kubectl.apply(&list.join("\n---\n")).unwrap();
}

fn list(namespace: &TempNamespace, kind: &str) -> Vec<Value> {
    let text = namespace.kubectl.run(&["get", kind, "-o", "json"]).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["items"].as_array().unwrap().clone()
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

fn pods(namespace: &TempNamespace) -> Vec<Value> {
    let of_a_run = |pod: &Value| pod["metadata"]["labels"]["belay.dev/run-uid"].is_string();
    list(namespace, "pods").into_iter().filter(of_a_run).collect()
}

/// The run's pod whose container runs.
fn pod_of(namespace: &TempNamespace, run: &str) -> Value {
    let found = |pods: Vec<Value>| {
        pods.into_iter().find(|pod| {
            pod["metadata"]["labels"]["belay.dev/run"] == run
                && pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
        })
    };
    node::until("the run has a pod", || Ok(found(pods(namespace)).is_some())).unwrap();
    found(pods(namespace)).unwrap()
}

fn runner(pod: &Value) -> Process {
    Process::of_pod(pod, "belay-runner").unwrap()
}

fn times(namespace: &TempNamespace, id: &str) -> usize {
    arrived(namespace).unwrap().iter().filter(|one| one.id.as_deref() == Some(id)).count()
}

fn delete(namespace: &TempNamespace, pod: &Value, how: &[&str]) {
    let name = name(pod);
    namespace.kubectl.run(&[&["delete", "pod", &name, "--wait=false", "--ignore-not-found"], how].concat()).unwrap();
}

fn until_arrived(namespace: &TempNamespace, id: &str) {
    node::until(&format!("{id} arrives"), || Ok(times(namespace, id) > 0)).unwrap();
}

/// Answers every open question, as the dice say; what cannot be answered now is answered later.
fn answer_all(namespace: &TempNamespace, dice: &mut Dice) -> usize {
    let open = list(namespace, "approvals").into_iter().filter(|one| one["status"]["state"] != "Sealed");
    let mut answered = 0;
    for approval in open {
        let how: &[&str] = if dice.below(2) == 0 { &["--retry"] } else { &["--happened", "a person saw it"] };
        let name = name(&approval);
        let output = belay(&[&["-n", &namespace.name, "resolve", &name, "--yes"], how].concat()).unwrap();
        answered += usize::from(output.success);
    }
    answered
}

fn has_ended(run: &Value) -> bool {
    condition(run, "Finished").is_some_and(|finished| finished["status"] == "True")
}

/// Answers what is asked until every run is over, and returns them all.
fn all_to_the_end(namespace: &TempNamespace, dice: &mut Dice, timeout: Duration) -> Vec<Value> {
    let deadline = Instant::now() + timeout;
    loop {
        answer_all(namespace, dice);
        let runs = list(namespace, "agentruns");
        let open: Vec<String> = runs.iter().filter(|run| !has_ended(run)).map(in_words).collect();
        if open.is_empty() {
            return runs;
        }
        assert!(Instant::now() < deadline, "{} runs are not over after {timeout:?}:\n{}", open.len(), open.join("\n"));
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn in_words(run: &Value) -> String {
    let ready = condition(run, "Ready").map_or_else(String::new, ToString::to_string);
    format!("{} {} waits for {} {ready}", name(run), run["status"]["phase"], run["status"]["waitingOn"]["display"])
}

fn assert_all_succeeded(runs: &[Value]) {
    let others: Vec<String> = runs.iter().filter(|run| run["status"]["phase"] != "Succeeded").map(in_words).collect();
    assert!(others.is_empty(), "{}", others.join("\n"));
}

fn assert_no_pods(namespace: &TempNamespace) {
    node::until("no pod is left", || Ok(pods(namespace).is_empty())).unwrap();
}

fn names(runs: &[Value]) -> Vec<String> {
    runs.iter().map(name).collect()
}

fn journal_of(namespace: &TempNamespace, run: &str) -> Vec<Value> {
    events(&verified_export(namespace, run).unwrap()).unwrap()
}

/// Steps that take a time, with calls that may be lost: some one by one, some two in one answer.
fn eventful(name: &str, dice: &mut Dice) -> (String, Vec<Value>) {
    let steps = 3 + dice.below(3);
    let turns = (0..steps).map(|step| {
        let mut delay = |below| Duration::from_millis(u64::try_from(dice.below(below)).unwrap());
        let (after, add, put) = (seconds(2) + delay(4000), delay(3000), delay(3000));
        let add = call("add", &format!("{name}-add-{step}"), add);
        let put = call("put", &format!("{name}-put-{step}"), put);
        match dice.below(3) {
            0 => turn(after, &[add]),
            1 => turn(after, &[put]),
            _ => turn(after, &[add, put]),
        }
    });
    (name.to_owned(), turns.collect())
}

#[test]
fn thirty_runs_survive_two_minutes_of_pods_and_operators_being_deleted() {
    let _alone = alone();
    let mut dice = Dice::new();
    let namespace = with_counter("chaos");
    let runs: Vec<_> = (0..30).map(|n| eventful(&format!("r{n}"), &mut dice)).collect();
    begin(&namespace, &runs);
    let until = Instant::now() + CHAOS;
    let mut done: BTreeMap<&str, usize> = BTreeMap::new();
    let mut count = |what, by| *done.entry(what).or_default() += by;
    while Instant::now() < until {
        for _ in 0..=dice.below(3) {
            let pods = pods(&namespace);
            let Some(pod) = pods.get(dice.below(pods.len())) else { continue };
            let by_force = dice.below(4) == 0;
            let how: &[&str] = if by_force { BY_FORCE } else { &["--grace-period=1"] };
            delete(&namespace, pod, how);
            count(if by_force { "pods by force" } else { "pods" }, 1);
        }
        if dice.below(2) == 0 {
            let by_force = dice.below(2) == 0;
            operator::delete_pod(if by_force { BY_FORCE } else { &[] }).unwrap();
            count("operators", 1);
        }
        count("answers", answer_all(&namespace, &mut dice));
        // The rhythm of the trouble, and no wait for anything.
        std::thread::sleep(Duration::from_millis(500 + u64::try_from(dice.below(4000)).unwrap()));
    }
    println!("done to them: {done:?}");
    operator::wait_ready().unwrap();
    let runs = all_to_the_end(&namespace, &mut dice, QUARANTINE + A_MINUTE + A_MINUTE);
    assert_all_succeeded(&runs);
    assert_eq!(runs.len(), 30);
    check(&namespace, &names(&runs)).unwrap();
    assert_no_pods(&namespace);
}

#[test]
fn a_full_volume_stops_effects_but_no_cancel_and_runs_go_on_once_there_is_space() {
    let _alone = alone();
    let mut dice = Dice::new();
    let namespace = with_counter("chaos-full");
    let small = OnSmallVolume::start(24).unwrap();
    let steps =
        |name: &str| (0..12).map(|n| turn(seconds(2), &[call("add", &format!("{name}-{n}"), AT_ONCE)])).collect();
    let runs: Vec<_> = ["a", "b", "c", "d", "e"].map(|name| (name.to_owned(), steps(name))).into();
    begin(&namespace, &runs);
    for (run, _) in &runs {
        until_arrived(&namespace, &format!("{run}-0"));
    }
    small.volume.fill().unwrap();
    let stuck = || {
        let before = arrived(&namespace)?.len();
        std::thread::sleep(seconds(5));
        Ok(arrived(&namespace)?.len() == before)
    };
    node::until("nothing arrives any more", stuck).unwrap();
    let cancelled = belay(&["-n", &namespace.name, "cancel", "c"]).unwrap();
    assert!(cancelled.success, "{}", cancelled.stderr);
    let run = namespace.run_to_the_end("c", A_MINUTE).unwrap();
    assert_eq!(run["status"]["phase"], "Cancelled", "{run:#}");
    let ended: Vec<String> = list(&namespace, "agentruns").iter().filter(|run| has_ended(run)).map(name).collect();
    assert_eq!(ended, ["c"], "the others wait for space");
    small.volume.free().unwrap();
    let runs = all_to_the_end(&namespace, &mut dice, A_MINUTE + A_MINUTE);
    let (cancelled, others): (Vec<Value>, Vec<Value>) = runs.iter().cloned().partition(|run| name(run) == "c");
    assert_eq!(cancelled[0]["status"]["phase"], "Cancelled");
    assert_all_succeeded(&others);
    check(&namespace, &names(&runs)).unwrap();
    for run in ["a", "b", "d", "e"] {
        assert!((0..12).all(|n| times(&namespace, &format!("{run}-{n}")) == 1), "each once: {:?}", arrived(&namespace));
    }
}

/// Three runs that have done one thing and are about to do another.
fn three_in_flight(namespace: &TempNamespace, prefix: &str) -> Vec<String> {
    let ids = ["a", "b", "c"].map(|one| format!("{prefix}-{one}"));
    let steps = |id: &str| {
        let add = |n: usize| call("add", &format!("{id}-{n}"), AT_ONCE);
        vec![turn(AT_ONCE, &[add(0)]), turn(seconds(3), &[add(1)]), turn(LONG, &[add(2)])]
    };
    begin(namespace, &ids.clone().map(|id| (id.clone(), steps(&id))));
    for id in &ids {
        until_arrived(namespace, &format!("{id}-0"));
    }
    ids.into()
}

fn assert_lost(namespace: &TempNamespace, runs: &[String], words: &str) {
    for run in runs {
        let run = namespace.run_to_the_end(run, A_MINUTE).unwrap();
        let ready = condition(&run, "Ready").unwrap();
        assert_eq!(
            (run["status"]["phase"].as_str(), ready["reason"].as_str()),
            (Some("Failed"), Some("JournalLost")),
            "{run:#}"
        );
        assert!(ready["message"].as_str().unwrap().contains(words), "{ready:#}");
    }
    assert_no_pods(namespace);
    let calls = arrived(namespace).unwrap();
    for run in runs {
        for n in 0..3 {
            let id = format!("{run}-{n}");
            let times = calls.iter().filter(|one| one.id.as_deref() == Some(&id)).count();
            assert!(times <= 1, "{id} arrived {times} times: {calls:?}");
        }
    }
}

#[test]
fn a_journal_that_is_lost_or_older_than_its_runs_stops_them_and_repeats_nothing() {
    let _alone = alone();
    let mut dice = Dice::new();
    let folder = operator::volume().unwrap();
    let namespace = with_counter("chaos-journal");

    let runs = three_in_flight(&namespace, "lost");
    let away = operator::away().unwrap();
    node::empty(&folder).unwrap();
    away.back().unwrap();
    assert_lost(&namespace, &runs, "journal");

    let runs = three_in_flight(&namespace, "old");
    let away = operator::away().unwrap();
    let copy = tempfile::tempdir().unwrap();
    node::copy(&folder, copy.path()).unwrap();
    away.back().unwrap();
    for run in &runs {
        until_arrived(&namespace, &format!("{run}-1"));
    }
    let away = operator::away().unwrap();
    node::empty(&folder).unwrap();
    node::copy(copy.path(), &folder).unwrap();
    away.back().unwrap();
    assert_lost(&namespace, &runs, "older copy");

    begin(&namespace, &[("after".to_owned(), vec![turn(AT_ONCE, &[call("add", "after", AT_ONCE)])])]);
    let runs = all_to_the_end(&namespace, &mut dice, A_MINUTE);
    assert!(runs.iter().any(|run| name(run) == "after" && run["status"]["phase"] == "Succeeded"), "new runs run");
    assert_eq!(times(&namespace, "after"), 1);
}

#[test]
fn fifty_runs_outlive_an_upgrade_a_successor_a_killed_operator_and_an_api_server_that_is_away() {
    let _alone = alone();
    let namespace = with_counter("chaos-fifty");
    let steps = |name: &str| {
        let add = |n: usize| call("add", &format!("{name}-{n}"), AT_ONCE);
        vec![
            turn(AT_ONCE, &[add(0)]),
            turn(seconds(12), &[add(1)]),
            turn(seconds(12), &[add(2)]),
            turn(seconds(20), &[add(3)]),
        ]
    };
    let runs: Vec<_> = (0..50).map(|n| format!("r{n}")).map(|name| (name.clone(), steps(&name))).collect();
    begin(&namespace, &runs);
    for (run, _) in &runs {
        until_arrived(&namespace, &format!("{run}-0"));
    }
    operator::rollout_restart().unwrap();
    operator::hand_over().unwrap();
    operator::kill().unwrap();
    let gone = NoApiServer::kill().unwrap();
    // The time it is away is the fault itself.
    std::thread::sleep(seconds(20));
    gone.back().unwrap();
    let runs = all_to_the_end(&namespace, &mut Dice::new(), A_MINUTE + A_MINUTE);
    assert_eq!(runs.len(), 50);
    assert_all_succeeded(&runs);
    check(&namespace, &names(&runs)).unwrap();
    let calls = arrived(&namespace).unwrap();
    assert_eq!(calls.len(), 200, "four of each run, none twice");
}

/// Begins a run and returns its pod once the call of this id has arrived.
fn caught(namespace: &TempNamespace, run: &str, id: &str, turns: Vec<Value>) -> Value {
    begin(namespace, &[(run.to_owned(), turns)]);
    until_arrived(namespace, id);
    pod_of(namespace, run)
}

/// Asked to go by the eviction API, as a drain does.
fn evict(namespace: &TempNamespace, pod: &Value) {
    let name = name(pod);
    let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace.name},
        "deleteOptions": {"gracePeriodSeconds": 1}});
    let path = format!("/api/v1/namespaces/{}/pods/{name}/eviction", namespace.name);
    let evicted = namespace.kubectl.output(&["create", "--raw", &path, "-f", "-"], Some(&body.to_string())).unwrap();
    assert!(evicted.success, "{}", evicted.stderr);
}

/// No permit was given after the first epoch ended and before the journal holds its death.
fn assert_quarantined(events: &[Value]) {
    let at = |kind: &str| {
        events.iter().position(|event| event["kind"] == kind).unwrap_or_else(|| panic!("no {kind}: {events:#?}"))
    };
    let (ended, dead) = (at("EpochEnded"), at("EpochDead"));
    assert_eq!(events[dead]["proof"], "Quarantine", "nobody saw it end");
    let permits = |event: &&Value| event["kind"] == "CallDecided" && event["verdict"]["allowed"].is_object();
    let early = events[ended..dead].iter().filter(permits).count();
    assert_eq!(early, 0, "{:#?}", &events[ended..dead]);
}

#[test]
fn runners_that_are_killed_frozen_evicted_or_forced_away_lose_nothing_and_repeat_nothing_unasked() {
    let _alone = alone();
    let namespace = with_counter("chaos-runner");
    let slow = |operation: &str, id: &str| vec![turn(AT_ONCE, &[call(operation, id, seconds(7))])];
    let thinking = |id: &str| {
        let add = |n: usize| call("add", &format!("{id}-{n}"), AT_ONCE);
        vec![turn(AT_ONCE, &[add(0)]), turn(seconds(6), &[add(1)])]
    };
    runner(&caught(&namespace, "killed-in-call", "killed", slow("add", "killed"))).signal("KILL").unwrap();
    runner(&caught(&namespace, "killed-thinking", "thought-0", thinking("thought"))).signal("KILL").unwrap();
    evict(&namespace, &caught(&namespace, "evicted", "evicted", slow("put", "evicted")));
    delete(&namespace, &caught(&namespace, "forced", "forced", slow("add", "forced")), BY_FORCE);
    let mut frozen = Vec::new();
    for (run, id, turns) in
        [("frozen-in-call", "frozen", slow("add", "frozen")), ("frozen-thinking", "ice-0", thinking("ice"))]
    {
        let pod = caught(&namespace, run, id, turns);
        frozen.push(runner(&pod).freeze().unwrap());
        delete(&namespace, &pod, BY_FORCE);
    }
    // Everything that nobody knows is sent once more, since a person says so.
    let retry = |approval: &Value| {
        belay(&["-n", &namespace.name, "resolve", &name(approval), "--yes", "--retry"]).unwrap();
    };
    let all_over = || {
        let approvals = list(&namespace, "approvals");
        approvals.iter().filter(|one| one["status"]["state"] != "Sealed").for_each(retry);
        Ok(list(&namespace, "agentruns").iter().all(has_ended))
    };
    node::until("the first quarantines are over", || Ok(all_over()? || times(&namespace, "ice-1") > 0)).unwrap();
    node::until("every run is over", all_over).unwrap();
    let runs = list(&namespace, "agentruns");
    assert_all_succeeded(&runs);
    let before = arrived(&namespace).unwrap();
    for one in &frozen {
        one.thaw().unwrap();
    }
    // As long as a permit that they took along could last.
    std::thread::sleep(seconds(11));
    assert_eq!(arrived(&namespace).unwrap(), before, "nothing of what was thawed is sent");
    drop(frozen);
    check(&namespace, &names(&runs)).unwrap();
    for (id, count) in [
        ("killed", 2),
        ("thought-0", 1),
        ("thought-1", 1),
        ("evicted", 2),
        ("forced", 2),
        ("frozen", 2),
        ("ice-0", 1),
        ("ice-1", 1),
    ] {
        assert_eq!(times(&namespace, id), count, "{id}: {before:?}");
    }
    for run in ["forced", "frozen-in-call", "frozen-thinking"] {
        assert_quarantined(&journal_of(&namespace, run));
    }
}
