//! What a Tool's server offers otherwise than it was accepted: found, told, accepted. Pure.

use std::collections::BTreeMap;

use belay_crds::conditions::{READY, find};
use belay_crds::drift::{OfferedChange, fitting};
use belay_crds::reason::ToolReason;
use belay_crds::{
    Acceptance, CHANGES_MAX, Change, DriftedOperation, LeftOutOperation, OpenApi, Tool, ToolDrift, ToolOperation,
    ToolSpec, ToolStatus,
};
use belay_protocol::digest::digest_of;
use belay_protocol::probe::{OperationDefinition, TEXTS_BYTES_MAX, kept_bytes};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt;
use serde_json::json;

use crate::agent::EVERY_OPERATION;
use crate::http_api::source;
use crate::readiness::Verdict;
use crate::writes::cut;

/// What status keeps of differences: an object has a megabyte or so.
const DIFFS_BYTES_MAX: usize = 96 * 1024;
const DIFF_BYTES_MAX: usize = 4096;
const DIFF_CUT: &str = "\n(cut: belay tool accept shows all of it)";
/// Names that a message lists before it says how many more there are.
const NAMES_MAX: usize = 12;
/// Operations that a message says why they are left out.
const LEFT_OUT_SHOWN: usize = 3;

/// Whether the Tool's own server is all right but for definitions: whoever needs none of those goes on.
#[must_use]
pub fn is_drifted(tool: &Tool) -> bool {
    let status = tool.status.as_ref().map_or(&[][..], |status| &status.conditions);
    find(status, READY).is_some_and(|ready| {
        ready.reason == ToolReason::Drifted.as_str() && ready.observed_generation == tool.metadata.generation
    })
}

/// Which of the `listed` operations the server does not offer as they were accepted.
#[must_use]
pub fn drifted_of<'a>(tool: &'a Tool, listed: &[String]) -> Vec<&'a str> {
    let every = listed.iter().any(|name| name == EVERY_OPERATION);
    let drift = tool.status.as_ref().and_then(|status| status.drift.as_ref());
    let held =
        drift.into_iter().flat_map(|drift| &drift.operations).filter(|operation| operation.change != Change::Added);
    held.filter(|operation| every || listed.contains(&operation.name))
        .map(|operation| operation.name.as_str())
        .collect()
}

/// Takes in what the server offers now, sorted by name. The first offer of a server is accepted; after that what differs
/// is held until people accept it.
pub fn take(status: &mut ToolStatus, spec: &ToolSpec, offered: Vec<ToolOperation>, probed_at: MicroTime) {
    status.probed_at = Some(probed_at);
    if !was_accepted(status, spec) {
        status.operations = offered;
        accepted_by(status, spec);
        (status.drift, status.acceptance, status.unrest) = (None, None, None);
        return;
    }
    accepted_by(status, spec);
    let changes = changes(&status.operations, &offered);
    refresh(&mut status.operations, &offered);
    let before = status.drift.take();
    status.drift = drift(&status.operations, &changes, before);
}

/// Whether `status.operations` were accepted from this very server. One that says nothing is of an earlier version.
#[must_use]
pub fn was_accepted(status: &ToolStatus, spec: &ToolSpec) -> bool {
    match (&status.accepted_from, &status.accepted_from_http) {
        (Some(from), None) => Some(from) == spec.mcp.as_ref(),
        (None, Some(from)) => Some(from) == spec.http.as_ref().map(source).as_ref(),
        (None, None) => !status.operations.is_empty(),
        (Some(_), Some(_)) => false,
    }
}

fn accepted_by(status: &mut ToolStatus, spec: &ToolSpec) {
    status.accepted_from.clone_from(&spec.mcp);
    status.accepted_from_http = spec.http.as_ref().map(source);
}

fn changes(accepted: &[ToolOperation], offered: &[ToolOperation]) -> Vec<DriftedOperation> {
    let by_name = |operations: &'_ [ToolOperation]| -> BTreeMap<String, ToolOperation> {
        operations.iter().map(|operation| (operation.name.clone(), operation.clone())).collect()
    };
    let (old, new) = (by_name(accepted), by_name(offered));
    let mut changes: Vec<DriftedOperation> = Vec::new();
    for (name, operation) in &new {
        let change = match old.get(name) {
            None => Change::Added,
            Some(accepted) if accepted.digest != operation.digest => Change::Changed,
            Some(_) => continue,
        };
        changes.push(DriftedOperation {
            name: name.clone(),
            change,
            digest: Some(operation.digest.clone()),
            description: operation.description.clone(),
            input_schema: operation.input_schema.clone(),
            diff: String::new(),
        });
    }
    changes.extend(old.keys().filter(|name| !new.contains_key(*name)).map(|name| DriftedOperation {
        name: name.clone(),
        change: Change::Removed,
        digest: None,
        description: String::new(),
        input_schema: None,
        diff: String::new(),
    }));
    // What is called today comes first: no number of further operations keeps a change of one from being seen.
    changes.sort_by(|a, b| (a.change == Change::Added, &a.name).cmp(&(b.change == Change::Added, &b.name)));
    changes
}

/// Of the same definition, what an earlier probe had no room for, or a version before this one did not keep. What is kept
/// stays: another probe has room for other operations, and people compare with it.
fn refresh(accepted: &mut [ToolOperation], offered: &[ToolOperation]) {
    let bytes = |one: &ToolOperation| OperationDefinition::text_bytes(&one.description, one.input_schema.as_deref());
    let mut left = TEXTS_BYTES_MAX.saturating_sub(accepted.iter().map(bytes).sum());
    for operation in accepted {
        let same = |one: &&ToolOperation| one.name == operation.name && one.digest == operation.digest;
        let Some(same) = offered.iter().find(same) else { continue };
        let mut fuller = operation.clone();
        if kept_bytes(&same.description) > kept_bytes(&operation.description) {
            fuller.description.clone_from(&same.description);
        }
        if operation.input_schema.is_none() {
            fuller.input_schema.clone_from(&same.input_schema);
        }
        let more = bytes(&fuller).saturating_sub(bytes(operation));
        if more <= left {
            left -= more;
            *operation = fuller;
        }
    }
}

/// The question about the same changes goes on; about others there is none yet.
fn drift(accepted: &[ToolOperation], changes: &[DriftedOperation], before: Option<ToolDrift>) -> Option<ToolDrift> {
    if changes.is_empty() {
        return None;
    }
    let told: Vec<_> = changes.iter().map(|one| json!({"name": one.name, "digest": one.digest})).collect();
    // Names and digests are strings: they always have a canonical form.
    let digest = digest_of(&told).map(|digest| digest.to_string()).unwrap_or_default();
    if let Some(before) = before.filter(|before| before.digest == digest) {
        return Some(before);
    }
    let asked = fitting(accepted, changes).min(CHANGES_MAX);
    let operations = compared(accepted, changes.iter().take(asked).cloned().collect());
    let more = i32::try_from(changes.len().saturating_sub(asked)).ok().filter(|more| *more > 0);
    Some(ToolDrift { digest, operations, more, question: None, refused: None })
}

/// With the differences, as far as there is room for them.
fn compared(accepted: &[ToolOperation], mut changes: Vec<DriftedOperation>) -> Vec<DriftedOperation> {
    let mut diffs = DIFFS_BYTES_MAX;
    for change in &mut changes {
        let whole = OfferedChange::of(accepted, change);
        change.diff = shortened(&whole.diff().join("\n"), DIFF_BYTES_MAX.min(diffs));
        diffs = diffs.saturating_sub(change.diff.len());
    }
    changes
}

fn shortened(diff: &str, bytes: usize) -> String {
    if diff.len() <= bytes {
        return diff.to_owned();
    }
    format!("{}{DIFF_CUT}", cut(diff, bytes.saturating_sub(DIFF_CUT.len()))).trim_start().to_owned()
}

/// People said yes to what is held: from now on that is what is accepted. What differs beyond it is found by the next
/// probe.
pub fn accept(status: &mut ToolStatus, acceptance: Acceptance) {
    let Some(drift) = status.drift.take() else { return };
    let mut operations: BTreeMap<String, ToolOperation> =
        std::mem::take(&mut status.operations).into_iter().map(|one| (one.name.clone(), one)).collect();
    for DriftedOperation { name, digest, description, input_schema, .. } in drift.operations {
        match digest {
            Some(digest) => {
                operations.insert(name.clone(), ToolOperation { name, digest, description, input_schema });
            }
            None => drop(operations.remove(&name)),
        }
    }
    status.operations = operations.into_values().collect();
    status.acceptance = Some(acceptance);
}

/// How a Tool stands whose server was listed. `unasked`: why people could not be asked, if they could not.
#[must_use]
pub fn verdict(tool: &Tool, status: &ToolStatus, unasked: Option<&str>) -> Verdict<ToolReason> {
    let (name, count) = (tool.name_any(), status.operations.len());
    let left_out = left_out(status);
    let Some(drift) = &status.drift else {
        let picked = tool.spec.http.as_ref().and_then(|http| http.open_api.as_ref());
        let lacks = |picked: &OpenApi| status.left_out.iter().any(|one| picked.operations.contains(&one.name));
        return if picked.is_some_and(lacks) {
            let message = format!("Tool {name}: spec.http.openAPI.operations picks what cannot be offered{left_out}");
            Verdict::waiting(ToolReason::DefinitionsInvalid, message)
        } else {
            let misnamed = misnamed(tool, status);
            Verdict::ready(ToolReason::Ready, format!("the server offers {count} operations{misnamed}{left_out}"))
        };
    };
    let what = format!("{}{left_out}", summary(drift));
    let then = match (&drift.refused, unasked) {
        (Some(no), _) => {
            let reason = if no.reason.is_empty() { String::new() } else { format!(": {}", no.reason) };
            format!(
                "{} said no{reason}; people are asked again once the server offers something else or the Tool's spec \
                 changes",
                no.by
            )
        }
        (None, Some(why)) => why.to_owned(),
        (None, None) => format!("belay tool accept {name} shows what differs and accepts it"),
    };
    if drift.more.is_none() && drift.operations.iter().all(|operation| operation.change == Change::Added) {
        let message =
            format!("the server offers the {count} accepted operations, and more that are held: {what}; {then}");
        return Verdict::ready(ToolReason::Ready, message);
    }
    let message = format!("calls are held to what the server does not offer as it was accepted: {what}; {then}");
    if drift.refused.is_some() {
        Verdict::stalled(ToolReason::Drifted, message)
    } else {
        Verdict::waiting(ToolReason::Drifted, message)
    }
}

/// Effects that are said of what is not offered: a slip there leaves a call to the default.
fn misnamed(tool: &Tool, status: &ToolStatus) -> String {
    let is_offered = |name: &&String| status.operations.iter().any(|operation| operation.name == **name);
    let said = tool.spec.effects.iter().flat_map(|effects| effects.operations.keys());
    let names: Vec<&str> = said.filter(|name| !is_offered(name)).map(String::as_str).take(LEFT_OUT_SHOWN).collect();
    if names.is_empty() {
        return String::new();
    }
    format!("; spec.effects.operations says of what it does not offer: {}", names.join(", "))
}

/// Why an operation that was there is not offered to anyone.
#[must_use]
pub fn why_left_out<'a>(tool: &'a Tool, operation: &str) -> Option<&'a str> {
    let left_out = tool.status.as_ref().map_or(&[][..], |status| &status.left_out);
    left_out.iter().find(|one| one.name == operation).map(|one| one.reason.as_str())
}

/// What cannot be offered, and why.
fn left_out(status: &ToolStatus) -> String {
    let words = |one: &LeftOutOperation| format!("{} ({})", belay_crds::visible(&one.name), one.reason);
    let shown: Vec<String> = status.left_out.iter().take(LEFT_OUT_SHOWN).map(words).collect();
    match (shown.is_empty(), status.left_out.len().saturating_sub(LEFT_OUT_SHOWN)) {
        (true, _) => String::new(),
        (false, 0) => format!("; left out: {}", shown.join(", ")),
        (false, more) => format!("; left out: {} and {more} more (status.leftOut)", shown.join(", ")),
    }
}

/// `set_labels changed, drop was removed`.
#[must_use]
pub fn summary(drift: &ToolDrift) -> String {
    let words = |operation: &DriftedOperation| {
        let name = belay_crds::visible(&operation.name);
        match operation.change {
            Change::Changed => format!("{name} changed"),
            Change::Removed => format!("{name} was removed"),
            Change::Added => format!("{name} was added"),
        }
    };
    let shown: Vec<String> = drift.operations.iter().take(NAMES_MAX).map(words).collect();
    let more = drift.operations.len().saturating_sub(NAMES_MAX);
    let more = more.saturating_add(drift.more.and_then(|more| usize::try_from(more).ok()).unwrap_or_default());
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use belay_crds::drift::Offer;
    use belay_crds::{DriftQuestion, DriftRefusal, Mcp, QuestionGuard};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::fixtures::tool;
    use crate::readiness::Standing;

    fn operation(name: &str, digest: &str) -> ToolOperation {
        ToolOperation {
            name: name.to_owned(),
            digest: format!("sha256:{digest}"),
            description: format!("does {digest}"),
            input_schema: Some("{}".to_owned()),
        }
    }

    fn at(second: i64) -> MicroTime {
        MicroTime(jiff::Timestamp::from_second(second).unwrap())
    }

    /// After the server offered these, one list after the other, as `name=digest`.
    fn offered(lists: &[&[(&str, &str)]]) -> (Tool, ToolStatus) {
        let mut tool = tool("github", &[]);
        let mut status = ToolStatus::default();
        for (second, list) in (1..).zip(lists) {
            take(
                &mut status,
                &tool.spec,
                list.iter().map(|(name, digest)| operation(name, digest)).collect(),
                at(second),
            );
        }
        tool.status = Some(status.clone());
        (tool, status)
    }

    fn accepted(status: &ToolStatus) -> Vec<(&str, &str)> {
        status.operations.iter().map(|one| (one.name.as_str(), one.digest.as_str())).collect()
    }

    fn told(status: &ToolStatus) -> String {
        status.drift.as_ref().map(summary).unwrap_or_default()
    }

    const FIRST: &[(&str, &str)] = &[("list", "1"), ("set", "1")];

    #[test]
    fn the_first_offer_is_accepted_and_what_differs_after_it_is_held() {
        type Row<'a> = (&'a [(&'a str, &'a str)], &'a str, Standing);
        let table: [Row<'_>; 6] = [
            (FIRST, "", Standing::Ready),
            (&[("list", "1"), ("set", "2")], "set changed", Standing::Waiting),
            (&[("list", "1")], "set was removed", Standing::Waiting),
            (&[("drop", "1"), ("list", "1"), ("set", "1")], "drop was added", Standing::Ready),
            (&[("drop", "1"), ("list", "2")], "list changed, set was removed, drop was added", Standing::Waiting),
            (&[], "list was removed, set was removed", Standing::Waiting),
        ];
        for (now, words, standing) in table {
            let (tool, status) = offered(&[FIRST, now]);
            assert_eq!(accepted(&status), [("list", "sha256:1"), ("set", "sha256:1")], "a probe accepts nothing anew");
            assert_eq!(told(&status), words);
            let verdict = verdict(&tool, &status, None);
            assert_eq!(verdict.standing, standing, "{}", verdict.message);
            assert!(verdict.message.contains(words), "{}", verdict.message);
        }
        let (_, nothing) = offered(&[&[], FIRST]);
        assert_eq!((accepted(&nothing).len(), told(&nothing).as_str()), (0, "list was added, set was added"));
    }

    /// A hundred further operations, however they are called, keep no change of one that is in use from being seen.
    #[test]
    fn what_is_in_use_comes_before_what_was_added() {
        let names: Vec<String> = (0..200).map(|number| format!("a{number:03}")).collect();
        let added: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
        let changed: Vec<(&str, &str)> = added.iter().copied().chain([("list", "1"), ("set", "2")]).collect();
        let (tool, status) = offered(&[FIRST, &changed]);
        assert!(told(&status).starts_with("set changed, a000 was added"), "{}", told(&status));
        assert_eq!(verdict(&tool, &status, None).reason, ToolReason::Drifted);
        let all: Vec<(&str, &str)> = added.iter().copied().chain(FIRST.iter().copied()).collect();
        let (tool, status) = offered(&[FIRST, &all]);
        assert_eq!(status.drift.as_ref().unwrap().more, Some(72));
        assert_eq!(verdict(&tool, &status, None).reason, ToolReason::Drifted, "nobody has seen all of it");
    }

    #[test]
    fn a_server_that_offers_again_what_was_accepted_is_as_it_was() {
        let (tool, status) = offered(&[FIRST, &[("list", "1"), ("set", "2")], FIRST]);
        assert_eq!((status.drift.is_none(), status.probed_at.clone()), (true, Some(at(3))));
        assert_eq!(verdict(&tool, &status, None).reason, ToolReason::Ready);
    }

    /// A listing keeps less of an operation where others take the room.
    #[test]
    fn what_is_kept_of_an_accepted_text_is_never_less_than_before_nor_more_than_there_is_room_for() {
        let with = |description: &str, schema: Option<&str>| ToolOperation {
            description: description.to_owned(),
            input_schema: schema.map(str::to_owned),
            ..operation("list", "1")
        };
        let after = |before: &ToolOperation, offered: ToolOperation| {
            let mut accepted = [before.clone()];
            refresh(&mut accepted, &[offered]);
            accepted[0].clone()
        };
        let whole = with("does it well", Some("{}"));
        let less = with("(.. 12 more bytes are not kept)", None);
        assert_eq!(after(&whole, less.clone()), whole);
        assert_eq!(after(&less, whole.clone()), whole);
        let beginning = with("does(.. 8 more bytes are not kept)", Some("{}"));
        assert_eq!(after(&whole, beginning.clone()), whole);
        assert_eq!(after(&beginning, whole.clone()), whole);

        let text = "x".repeat(4096);
        let full: Vec<ToolOperation> = (0..64)
            .map(|number| ToolOperation { name: format!("o{number}"), description: text.clone(), ..with("", None) })
            .collect();
        let mut accepted = full.clone();
        accepted.push(less.clone());
        refresh(&mut accepted, &[with(&text, Some("{}"))]);
        assert_eq!(accepted.last(), Some(&less), "status has room for so much and no more");
    }

    #[test]
    fn another_server_or_credential_is_accepted_anew_and_another_spec_is_not() {
        let (tool, mut status) = offered(&[FIRST]);
        let now = || vec![operation("list", "2")];
        let mut same = tool.spec.clone();
        same.call_timeout_seconds = Some(7);
        take(&mut status.clone(), &same, now(), at(2));
        let mut kept = status.clone();
        take(&mut kept, &same, now(), at(2));
        assert_eq!(accepted(&kept), [("list", "sha256:1"), ("set", "sha256:1")]);
        let mut other = tool.spec.clone();
        other.mcp = Some(Mcp { url: "http://other/mcp".into(), credential_ref: None, tls: None });
        take(&mut status, &other, now(), at(2));
        assert_eq!((accepted(&status), status.drift.is_none()), (vec![("list", "sha256:2")], true));
        let mut keyed = other.clone();
        keyed.mcp.as_mut().unwrap().credential_ref = Some(belay_crds::NameRef::new("k"));
        assert!(!was_accepted(&status, &keyed));
    }

    #[test]
    fn an_api_is_accepted_by_its_whole_spec_and_its_document_drifts() {
        let mut tool = tool("pets", &[]);
        let open_api = "{baseURL: 'http://x', openAPI: {configMapKeyRef: {name: c, key: k}}}";
        (tool.spec.mcp, tool.spec.http) = (None, Some(serde_saphyr::from_str(open_api).unwrap()));
        let mut status = ToolStatus::default();
        take(&mut status, &tool.spec, vec![operation("list", "1")], at(1));
        take(&mut status, &tool.spec, vec![operation("list", "2")], at(2));
        assert_eq!((told(&status).as_str(), status.accepted_from.clone()), ("list changed", None));
        let mut edited = tool.spec.clone();
        edited.http.as_mut().unwrap().base_url = "http://y".into();
        assert!(was_accepted(&status, &tool.spec) && !was_accepted(&status, &edited));
        let mut became_mcp = status.clone();
        edited = crate::fixtures::tool("pets", &[]).spec;
        take(&mut became_mcp, &edited, vec![operation("list", "3")], at(3));
        assert_eq!((accepted(&became_mcp), became_mcp.accepted_from_http.clone()), (vec![("list", "sha256:3")], None));
    }

    #[test]
    fn effects_of_what_is_not_offered_are_named() {
        let mut tool = tool("pets", &[]);
        tool.spec.effects = Some(serde_saphyr::from_str("{operations: {list: None, lisst: Idempotent}}").unwrap());
        let mut status = ToolStatus::default();
        take(&mut status, &tool.spec, vec![operation("list", "1")], at(1));
        let words = "the server offers 1 operations; spec.effects.operations says of what it does not offer: lisst";
        assert_eq!(verdict(&tool, &status, None).message, words);
    }

    #[test]
    fn what_is_left_out_is_named_and_holds_a_tool_up_only_where_it_was_picked() {
        let mut tool = tool("pets", &[]);
        let left_out =
            |number: usize| LeftOutOperation { name: format!("o{number}"), reason: "its body is not JSON".into() };
        let status = ToolStatus { left_out: (0..4).map(left_out).collect(), ..ToolStatus::default() };
        let ready = verdict(&tool, &status, None);
        assert_eq!((ready.standing, ready.reason), (Standing::Ready, ToolReason::Ready));
        let words = "the server offers 0 operations; left out: o0 (its body is not JSON), o1 (its body is not JSON), o2 (its \
                     body is not JSON) and 1 more (status.leftOut)";
        assert_eq!(ready.message, words);
        let picked = "{baseURL: 'http://x', openAPI: {configMapKeyRef: {name: c, key: k}, operations: [o3]}}";
        (tool.spec.mcp, tool.spec.http) = (None, Some(serde_saphyr::from_str(picked).unwrap()));
        let verdict = verdict(&tool, &status, None);
        assert_eq!((verdict.standing, verdict.reason), (Standing::Waiting, ToolReason::DefinitionsInvalid));
        assert!(verdict.message.starts_with("Tool pets: spec.http.openAPI.operations picks"), "{}", verdict.message);
    }

    #[test]
    fn what_is_left_out_by_now_and_was_accepted_is_held_with_the_reason() {
        let (mut tool, mut status) = offered(&[FIRST, &[("list", "1")]]);
        let reason = "its definition holds a value of Credential key".to_owned();
        status.left_out = vec![LeftOutOperation { name: "set".into(), reason: reason.clone() }];
        let verdict = verdict(&tool, &status, None);
        assert_eq!((verdict.standing, verdict.reason), (Standing::Waiting, ToolReason::Drifted));
        let words = format!("set was removed; left out: set ({reason}); belay tool accept github");
        assert!(verdict.message.contains(&words), "{}", verdict.message);
        tool.status = Some(status);
        assert_eq!((why_left_out(&tool, "set"), why_left_out(&tool, "list")), (Some(reason.as_str()), None));
    }

    #[test]
    fn what_an_earlier_version_listed_was_accepted() {
        let tool = tool("github", &["list"]);
        let mut status = tool.status.clone().unwrap();
        take(&mut status, &tool.spec, vec![operation("list", "2")], at(1));
        assert_eq!(told(&status), "list changed");
        assert_eq!(status.accepted_from, tool.spec.mcp);
    }

    fn question() -> DriftQuestion {
        let guard = QuestionGuard {
            policy_uid: "p".into(),
            policy_generation: 1,
            binding_uid: "b".into(),
            binding_generation: 1,
        };
        let expires_at = Time(jiff::Timestamp::from_second(9).unwrap());
        let (approval, nonce, digest) = ("a".into(), "n".into(), "sha256:d".into());
        DriftQuestion { approval, uid: Some("u".into()), nonce, digest, expires_at, guard }
    }

    #[test]
    fn the_question_and_a_refusal_stay_while_the_offer_does_and_go_with_it() {
        let changed: &[(&str, &str)] = &[("list", "1"), ("set", "2")];
        let (tool, mut status) = offered(&[FIRST, changed]);
        let drift = status.drift.as_mut().unwrap();
        drift.question = Some(question());
        let no = DriftRefusal { by: "ada".into(), reason: "no".into(), approval: "a".into(), generation: 1 };
        drift.refused = Some(no);
        let offer = |list: &[(&str, &str)]| list.iter().map(|(name, digest)| operation(name, digest)).collect();
        let mut same = status.clone();
        take(&mut same, &tool.spec, offer(changed), at(5));
        assert_eq!(same.drift, status.drift);
        let words = verdict(&tool, &same, None);
        assert_eq!(words.standing, Standing::Stalled);
        assert!(words.message.contains("ada said no: no; people are asked again once"), "{}", words.message);
        take(&mut status, &tool.spec, offer(&[("list", "1"), ("set", "3")]), at(5));
        let drift = status.drift.unwrap();
        assert_eq!((drift.question, drift.refused), (None, None), "something else is asked about anew");
    }

    #[test]
    fn a_yes_makes_what_was_held_the_accepted_definitions() {
        let (_, mut status) = offered(&[FIRST, &[("drop", "1"), ("list", "2")]]);
        let acceptance =
            Acceptance { approval: "a".into(), by: vec!["ada".into()], at: Time(jiff::Timestamp::UNIX_EPOCH) };
        accept(&mut status, acceptance.clone());
        assert_eq!(accepted(&status), [("drop", "sha256:1"), ("list", "sha256:2")]);
        assert_eq!((status.drift.is_none(), status.acceptance.as_ref()), (true, Some(&acceptance)));
        assert_eq!(status.operations[1].description, "does 2");
        accept(&mut status, acceptance);
        assert_eq!(accepted(&status).len(), 2, "there is nothing to accept twice");
    }

    #[test]
    fn a_difference_is_readable_and_bounded_and_so_is_what_people_sign() {
        let (_, status) = offered(&[FIRST, &[("list", "1"), ("set", "2")]]);
        assert_eq!(status.drift.unwrap().operations[0].diff, "- description: does 1\n+ description: does 2\n  {}");
        let mut tool = tool("github", &[]);
        let many = |text: char| -> Vec<ToolOperation> {
            (0..300)
                .map(|number| ToolOperation {
                    name: format!("{number:03}{}", "n".repeat(125)),
                    digest: format!("sha256:{text}"),
                    description: text.to_string().repeat(4096),
                    input_schema: Some(format!("\"{}\"", text.to_string().repeat(4000))),
                })
                .collect()
        };
        let mut status = ToolStatus::default();
        take(&mut status, &tool.spec, many('a'), at(1));
        take(&mut status, &tool.spec, many('b'), at(2));
        let drift = status.drift.as_ref().unwrap();
        // As many as people can be shown whole, and no more.
        assert_eq!((drift.operations.len(), drift.more), (13, Some(287)));
        assert!(drift.operations.iter().all(|one| one.description.len() == 4096 && one.input_schema.is_some()));
        assert!(told(&status).ends_with(" and 288 more"), "{}", told(&status));
        let diffs: usize = drift.operations.iter().map(|one| one.diff.len()).sum();
        assert!(diffs <= DIFFS_BYTES_MAX, "{diffs}");
        assert!(drift.operations.iter().all(|one| one.diff.len() <= DIFF_BYTES_MAX));
        let signed = belay_protocol::digest::canonical(&Offer::of(&status).unwrap()).unwrap();
        assert!(signed.len() <= crate::approval::ARGUMENTS_BYTES_MAX, "{}", signed.len());
        tool.status = Some(status);
        assert!(!is_drifted(&tool), "its conditions say so, not its drift");
    }

    #[test]
    fn an_agent_is_held_by_what_it_lists_alone() {
        let (tool, _) = offered(&[FIRST, &[("drop", "1"), ("list", "2"), ("set", "1")]]);
        let drifted = |listed: &[&str]| {
            let listed: Vec<String> = listed.iter().map(|name| (*name).to_owned()).collect();
            drifted_of(&tool, &listed).join(",")
        };
        assert_eq!(
            (drifted(&["set"]), drifted(&["list", "set"]), drifted(&["*"])),
            (String::new(), "list".into(), "list".into())
        );
        assert_eq!(drifted(&["drop"]), "", "it was never accepted: the Agent finds it missing");
    }
}
