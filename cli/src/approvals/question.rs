//! The whole question, as it is read before it is decided: what would be done, for whom, and who said what so far.

use belay_crds::{
    Approval, ApprovalOutcome, ApprovalPurpose, ApprovalRequest, Decision, DecisionAnswer, DecisionVerdict,
    Requirement, is_person, visible,
};

use super::arguments::{Detail, rows, shown};
use super::look_alikes::look_alikes;
use super::offer;
use super::policies;
use super::{grant, inquiry};
use crate::place::{Place, Placed};

/// The question in lines, and how many bytes of its arguments they leave out.
pub struct Question {
    pub text: String,
    pub folded_bytes: usize,
}

pub fn question(placed: Placed<'_>, request: &ApprovalRequest, detail: Detail) -> Question {
    let Placed { name, place } = placed;
    let asked = match request.purpose {
        ApprovalPurpose::Call => "May this call be made? It has not been.",
        ApprovalPurpose::Drift => "Is what the server offers now accepted? Calls to it are held until it is.",
        ApprovalPurpose::Unknown => "Did this call take effect? Nobody here can tell: look where it went.",
        ApprovalPurpose::Question => "What does the server of this call want to know?",
    };
    let mut lines = vec![format!("Approval {name}: {asked}")];
    lines.extend(facts(request));
    let earlier = inquiry::earlier(request, detail);
    lines.extend(earlier.lines);
    lines.extend(inquiry::lines(request));
    let shown = match request.purpose {
        ApprovalPurpose::Drift => {
            lines.push("  offered: - what was accepted, + what is offered".to_owned());
            offer::shown(&request.arguments, detail)
        }
        ApprovalPurpose::Call | ApprovalPurpose::Question | ApprovalPurpose::Unknown => {
            lines.push(arguments_line(request, place));
            shown(&rows(&request.arguments), detail)
        }
    };
    lines.extend(shown.lines.iter().map(|row| format!("    {row}")));
    let folded_bytes = shown.folded_bytes + earlier.folded_bytes;
    if folded_bytes > 0 {
        lines.push(format!("  FOLDED: {folded_bytes} bytes are not shown; --full shows them"));
    }
    lines.extend(warnings(request).iter().map(|line| format!("  LOOK OUT: {}", visible(line))));
    Question { text: joined(&lines), folded_bytes }
}

fn arguments_line(request: &ApprovalRequest, place: &Place) -> String {
    let bytes = request.arguments.len();
    if request.arguments_truncated == Some(true) {
        let run = visible(request.run_name());
        format!(
            "  arguments: ONLY THE FIRST {bytes} bytes: no more fits into an Approval. {} journal export {run} has all of \
             them",
            place.belay()
        )
    } else {
        format!("  arguments: {bytes} bytes, those that would be sent")
    }
}

fn joined(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
}

fn facts(request: &ApprovalRequest) -> Vec<String> {
    let line = |label: &str, value: &str| format!("  {label:<12} {}", visible(value));
    let requester = if request.requested_by.is_empty() { "nobody vouched for it" } else { &request.requested_by };
    let credential = request.credential.as_ref().map(|name| format!("Credential {name}"));
    let sent_at = request.sent_at.as_ref().map(|at| line("sent about", &at.0.to_string()));
    let with = line("with", credential.as_deref().unwrap_or("no Credential"));
    let before = match request.purpose {
        ApprovalPurpose::Call | ApprovalPurpose::Question | ApprovalPurpose::Unknown => {
            let call = request.call_id.as_deref().unwrap_or_default();
            vec![
                line("run", request.run_name()),
                line("requested by", requester),
                line("call", &format!("{call}, attempt {}", request.attempt.unwrap_or_default())),
                line("operation", &format!("{}/{}", request.tool, request.operation_name())),
                line("defined as", &request.definition),
                line("sent to", &request.destination),
                with,
            ]
        }
        ApprovalPurpose::Drift => vec![
            line("tool", &request.tool),
            line("defined as", &request.definition),
            line("server", &request.destination),
            with,
        ],
    };
    let on = if request.purpose == ApprovalPurpose::Drift { "Tool" } else { "policy" };
    let after = [
        line("known", &request.message),
        line("expires", &request.expires_at.0.to_string()),
        line("needs", &format!("approve on {on} {}", policies(request).join(", "))),
        line("digest", &request.digest),
    ];
    before.into_iter().chain(sent_at).chain(after).collect()
}

fn warnings(request: &ApprovalRequest) -> Vec<String> {
    let written = [
        request.tool.as_str(),
        request.operation_name(),
        &request.destination,
        request.credential.as_deref().unwrap_or_default(),
        &request.requested_by,
        &request.message,
        &request.arguments,
    ];
    let written: Vec<&str> = written.into_iter().chain(inquiry::written(request)).collect();
    let hidden = written.iter().any(|text| visible(text) != **text);
    let spelled = "characters that move, turn or hide text, or are odd spaces, are spelled out as \\u{..}".to_owned();
    hidden.then_some(spelled).into_iter().chain(look_alikes(written)).collect()
}

/// A line for each policy and each decision. `digest`: the one over the request that was shown.
pub fn standing(approval: &Approval, digest: &str) -> String {
    let request = &approval.spec.request;
    let counted = approval.spec.counted(digest);
    let mut lines = vec![format!("Given so far: {}", request.given(&counted))];
    for one in &request.requirements {
        let yes: Vec<String> = one.approvers(&counted).into_iter().map(visible).collect();
        let missing = request.people_needed(one).saturating_sub(yes.len());
        let who = if yes.is_empty() { "nobody".to_owned() } else { yes.join(", ") };
        let rest = if missing == 0 { "enough".to_owned() } else { format!("{missing} more needed") };
        let on = if request.purpose == ApprovalPurpose::Drift { "Tool" } else { "policy" };
        lines.push(format!("  {on} {}: {} ({who} said yes; {rest})", visible(&one.policy), wanted(request, one)));
    }
    lines.extend(approval.spec.decisions.iter().map(|decision| said(decision, counted.contains(&decision))));
    if counted.iter().any(|decision| decision.verdict == DecisionVerdict::Deny) {
        lines.push("  a Deny beats every Allow".to_owned());
    }
    if approval.is_sealed() {
        let outcome = approval.status.as_ref().and_then(|status| status.outcome);
        lines.push(format!("  {}it takes no more decisions", outcome.map_or("sealed: ", became)));
    }
    joined(&lines)
}

/// What became of it.
fn became(outcome: ApprovalOutcome) -> &'static str {
    match outcome {
        ApprovalOutcome::Allowed => "sealed as Allowed: ",
        ApprovalOutcome::Denied => "sealed as Denied: ",
        ApprovalOutcome::Answered => "sealed as Answered: ",
        ApprovalOutcome::Expired => "sealed as Expired, not enough people decided in time: ",
        ApprovalOutcome::Withdrawn => "sealed undecided (the run ended, or it is asked anew; its journal says why): ",
    }
}

fn said(decision: &Decision, counts: bool) -> String {
    let verdict = match decision.verdict {
        DecisionVerdict::Allow => "Allow",
        DecisionVerdict::Deny => "Deny",
    };
    let reason = decision.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let void = if counts { "" } else { " (does not count)" };
    let more = grant::grant_of(decision.answer.as_ref());
    let more = more.map_or_else(String::new, |more| format!(", and {}", grant::said(more)));
    let answer = decision.answer.as_ref().map_or_else(String::new, answered);
    format!(
        "  {verdict} by {}{more}{answer}",
        visible(&format!("{} for {}{void}{reason}", decision.by, decision.policy))
    )
}

/// What was said of a call whose end nobody knew, or to its server.
fn answered(answer: &DecisionAnswer) -> String {
    let happened = answer.happened.as_ref().map(|it| format!(", it happened: {}", visible(&it.result)));
    let retry = answer.retry.as_ref().map(|_| ", send it again".to_owned());
    let input = answer.input.as_ref().map(|it| {
        it.content
            .as_deref()
            .map_or_else(|| ", the page was opened".to_owned(), |content| format!(", the answer {}", visible(content)))
    });
    happened.or(retry).or(input).unwrap_or_default()
}

/// Whom a policy wants.
fn wanted(request: &ApprovalRequest, one: &Requirement) -> String {
    let quorum = match one.quorum {
        1 => "one person".to_owned(),
        more => format!("{more} people"),
    };
    let people = match one.separation_of_duty {
        Some(true) if is_person(&request.requested_by) => {
            format!("{quorum} other than {}, who created the run", visible(&request.requested_by))
        }
        Some(true) => format!("{quorum}, and one more since nobody knows who created the run"),
        Some(false) | None => quorum,
    };
    let more = one.grants.map(|terms| format!("; with a yes, {} may be allowed for the run", grant::words(terms)));
    format!("{people}{}", more.unwrap_or_default())
}

#[cfg(test)]
pub mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use belay_protocol::call::request_digest;
    use serde_json::{Value, json};

    use super::*;
    use crate::place::tests::in_team;

    /// What the operator would have made of `change`, which replaces fields of the request.
    pub fn approval(change: &Value, decisions: &[(&str, &str, &str)]) -> Approval {
        let mut request = json!({
            "purpose": "Call", "run": {"name": "nightly", "uid": "u"}, "callId": "c1", "attempt": 1, "tool": "github",
            "operation": "delete_repo", "definition": "sha256:d", "arguments": "{\"name\":\"a\"}",
            "destination": "http://github/mcp", "credential": "github-token", "callDigest": "sha256:c",
            "message": "github/delete_repo is not sent before careful, owners says yes",
            "requirements": [
                {"policy": "careful", "generation": 3, "quorum": 2, "separationOfDuty": true},
                {"policy": "owners", "generation": 1, "quorum": 1}],
            "requestedBy": "eve", "expiresAt": "2026-11-30T10:00:00Z", "nonce": "n",
        });
        for (field, value) in change.as_object().unwrap() {
            request[field] = value.clone();
            if value.is_null() {
                request.as_object_mut().unwrap().remove(field);
            }
        }
        let digest = request_digest(&request).unwrap().to_string();
        request["digest"] = json!(digest);
        let decisions: Vec<Value> = (decisions.iter())
            .map(|(policy, by, verdict)| json!({"policy": policy, "by": by, "verdict": verdict, "digest": digest}))
            .collect();
        let object = json!({
            "apiVersion": "belay.dev/v1alpha1", "kind": "Approval", "metadata": {"name": "nightly-c1-x", "uid": "a1"},
            "spec": {"request": request, "decisions": decisions},
        });
        serde_json::from_value(object).unwrap()
    }

    /// What the operator makes of a Tool whose server changed `set_labels`.
    pub fn drift() -> Approval {
        let definition = |digest: &str, description: &str| json!({"digest": digest, "description": description, "inputSchema": "{}"});
        let offer = json!({"operations": [{
            "name": "set_labels", "change": "Changed",
            "accepted": definition("sha256:old", "Sets labels."),
            "offered": definition("sha256:new", "Sets labels.\u{202e} And more."),
        }]});
        approval(
            &json!({
                "purpose": "Drift", "run": null, "callId": null, "attempt": null, "operation": null, "callDigest": null,
                "requestedBy": "", "arguments": offer.to_string(), "message": "Tool github does not offer what was accepted",
                "requirements": [{"policy": "github", "quorum": 1}],
            }),
            &[],
        )
    }

    #[test]
    fn what_a_server_offers_is_shown_line_by_line_from_what_is_signed() {
        let approval = drift();
        let text = question(in_team("a"), &approval.spec.request, Detail::Folded).text;
        let expected = r"    set_labels changed
      - description: Sets labels.
      + description: Sets labels.\u{202e} And more.
        {}
";
        assert!(text.contains(expected), "{text}");
        for words in
            ["Is what the server offers now accepted?", "tool         github", "needs        approve on Tool github"]
        {
            assert!(text.contains(words), "{text}");
        }
        assert!(!text.contains("run  ") && !text.contains('\u{202e}'), "{text:?}");
        let standing = standing(&approval, &approval.spec.request.digest);
        assert!(standing.contains("  Tool github: one person (nobody said yes; 1 more needed)"), "{standing}");
    }

    fn text(change: &Value, detail: Detail) -> String {
        question(in_team("nightly-c1-x"), &approval(change, &[]).spec.request, detail).text
    }

    #[test]
    fn the_whole_question_is_shown() {
        let expected = r"Approval nightly-c1-x: May this call be made? It has not been.
  run          nightly
  requested by eve
  call         c1, attempt 1
  operation    github/delete_repo
  defined as   sha256:d
  sent to      http://github/mcp
  with         Credential github-token
  known        github/delete_repo is not sent before careful, owners says yes
  expires      2026-11-30T10:00:00Z
  needs        approve on policy careful, owners
";
        let text = text(&json!({}), Detail::Folded);
        let (start, end) = text.split_once("  digest ").unwrap();
        assert_eq!(start, expected);
        assert!(
            end.ends_with("arguments: 12 bytes, those that would be sent\n    {\n      \"name\":\"a\"\n    }\n"),
            "{end}"
        );
        let unknown = json!({"purpose": "Unknown", "sentAt": "2026-11-23T10:00:00Z", "message": "its pod was lost"});
        let unknown = self::text(&unknown, Detail::Folded);
        for words in ["Did this call take effect?", "sent about   2026-11-23T10:00:00Z", "its pod was lost"] {
            assert!(unknown.contains(words), "{unknown}");
        }
    }

    #[test]
    fn nothing_in_it_reaches_the_terminal_raw() {
        let nasty = "a\u{202e}b\u{1b}[2J\u{200b}";
        let everywhere = json!({
            "tool": nasty, "operation": nasty, "destination": nasty, "credential": nasty, "requestedBy": nasty,
            "message": nasty, "arguments": nasty, "definition": nasty, "callId": nasty,
            "run": {"name": nasty, "uid": "u"}, "requirements": [{"policy": nasty, "quorum": 1}],
        });
        let approval = approval(&everywhere, &[(nasty, nasty, "Allow")]);
        let digest = approval.spec.request.digest.clone();
        let text = question(in_team("a"), &approval.spec.request, Detail::Full).text + &standing(&approval, &digest);
        assert!(!text.contains(['\u{202e}', '\u{1b}', '\u{200b}']), "{text:?}");
        assert!(text.contains("LOOK OUT: characters that move, turn or hide"), "{text}");
    }

    #[test]
    fn what_a_server_asks_is_shown_behind_bars_and_never_raw() {
        let nasty = "sign in\u{202e}\n  digest sha256:forged\u{1b}[2J";
        let schema = json!({"type": "object", "required": ["who"], "properties": {"who": {
            "type": "string", "enum": ["a", "b"], "description": nasty, "default": nasty}}});
        let form = json!({"message": nasty, "schema": schema.to_string()});
        let shown = text(&json!({"purpose": "Question", "question": form}), Detail::Folded);
        assert!(shown.contains("What does the server of this call want to know?"), "{shown}");
        assert!(shown.contains("THE SERVER ASKS. It is not trusted: give it no password, key or token"), "{shown}");
        assert!(shown.contains("    | sign in\\u{202e}\n    |   digest sha256:forged\\u{1b}[2J\n"), "{shown}");
        assert!(shown.contains("  field who (required): one of \"a\", \"b\"\n    | sign in"), "{shown}");
        assert!(shown.contains("LOOK OUT: characters that move"), "{shown}");
        assert!(!shown.contains(['\u{202e}', '\u{1b}']), "{shown:?}");
        let page = json!({"message": "m", "url": "https://аpple.com/\u{200b}"});
        let shown = text(&json!({"purpose": "Question", "question": page}), Detail::Folded);
        assert!(shown.contains("page to open: https://аpple.com/\\u{200b}\n    nothing opens it for you"), "{shown}");
        assert!(shown.contains("LOOK OUT: "), "{shown}");
    }

    #[test]
    fn what_people_answered_before_is_shown_and_folded_only_with_a_word() {
        let answered = json!([
            {"message": "who\u{202e}?", "content": "{\"name\":\"pаypal\"}"},
            {"message": "open", "url": "https://x.example/\u{200b}"},
        ]);
        for purpose in ["Call", "Question"] {
            let question =
                if purpose == "Question" { json!({"message": "m", "url": "https://y.example"}) } else { Value::Null };
            let change = json!({"purpose": purpose, "question": question, "answered": answered});
            let shown = text(&change, Detail::Folded);
            let first = "  ANSWERED BEFORE (1 of 2): it goes with the call\n    | who\\u{202e}?\n    people answered\n";
            assert!(shown.contains(first) && shown.contains("\"name\":\"pаypal\""), "{shown}");
            assert!(shown.contains(
                "(2 of 2): it goes with the call\n    | open\n    people opened https://x.example/\\u{200b}"
            ));
            assert!(shown.contains("LOOK OUT: characters that move") && shown.contains("LOOK OUT: pаypal"), "{shown}");
        }
        let content = format!("{{\"a\":\"{}\"}}", "x".repeat(1000));
        let long = json!({"answered": [{"message": "m", "content": content}]});
        assert!(text(&long, Detail::Folded).contains("FOLDED: "));
        assert!(!text(&long, Detail::Full).contains("FOLDED"));
    }

    #[test]
    fn look_alikes_and_what_is_folded_or_does_not_fit_are_pointed_at() {
        let look = text(&json!({"arguments": "{\"to\":\"pаypal\"}"}), Detail::Folded);
        assert!(look.contains("LOOK OUT: pаypal mixes scripts"), "{look}");
        let long = json!({"arguments": format!("{{\"a\":\"{}\"}}", "x".repeat(1000))});
        let folded = question(in_team("a"), &approval(&long, &[]).spec.request, Detail::Folded);
        assert!(folded.folded_bytes > 0 && folded.text.contains("FOLDED: "), "{}", folded.text);
        assert!(!text(&long, Detail::Full).contains("FOLDED"));
        let cut = text(&json!({"arguments": "{\"a\":\"b", "argumentsTruncated": true}), Detail::Full);
        assert!(
            cut.contains("ONLY THE FIRST 7 bytes") && cut.contains("belay -n team journal export nightly"),
            "{cut}"
        );
    }

    #[test]
    fn who_said_what_and_who_is_needed_is_told_by_policy() {
        let yes = approval(
            &json!({}),
            &[("careful", "ada", "Allow"), ("careful", "eve", "Allow"), ("owners", "zoe", "Deny")],
        );
        let digest = yes.spec.request.digest.clone();
        assert_eq!(
            standing(&yes, &digest),
            "Given so far: 1/3
  policy careful: 2 people other than eve, who created the run (ada said yes; 1 more needed)
  policy owners: one person (nobody said yes; 1 more needed)
  Allow by ada for careful
  Allow by eve for careful (does not count)
  Deny by zoe for owners
  a Deny beats every Allow
"
        );
        let hidden = standing(&approval(&json!({"requestedBy": ""}), &[]), "sha256:d");
        assert!(
            hidden.contains("careful: 2 people, and one more since nobody knows who created the run (nobody"),
            "{hidden}"
        );
        assert!(hidden.contains("3 more needed"), "{hidden}");
    }

    #[test]
    fn a_sealed_question_says_what_became_of_it_and_what_people_said_of_an_unknown() {
        let mut unknown = approval(&json!({"purpose": "Unknown"}), &[("careful", "ada", "Allow")]);
        let happened = serde_json::from_value(json!({"happened": {"result": "3 gone\u{1b}"}})).unwrap();
        unknown.spec.decisions[0].answer = Some(happened);
        let status = json!({"sealed": true, "outcome": "Answered"});
        unknown.status = Some(serde_json::from_value(status).unwrap());
        let shown = standing(&unknown, &unknown.spec.request.digest);
        assert!(shown.contains("Allow by ada for careful, it happened: 3 gone\\u{1b}"), "{shown}");
        assert!(shown.ends_with("  sealed as Answered: it takes no more decisions\n"), "{shown}");
    }
}
