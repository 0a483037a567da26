//! How a call differs from the last one of the same operation that people said yes to, as far as its Approval is still
//! there: it goes with its run.

use belay_crds::{Approval, ApprovalPurpose, ApprovalRequest, DecisionVerdict, visible};
use futures::TryStreamExt as _;
use similar::{Algorithm, ChangeTag, DiffOp, capture_diff_slices};

use super::arguments::{Detail, Row, rows};
use super::{checked_digest, each};
use crate::Target;

/// Rows around a change.
const CONTEXT: usize = 2;
/// More changed rows are counted and not shown.
const ROWS_MAX: usize = 60;

/// Looks through the namespace, a page at a time, and keeps the latest. In words, where it cannot look.
pub async fn difference(target: &Target, now: &Approval, detail: Detail) -> String {
    let mut last: Option<Approval> = None;
    let mut approvals = std::pin::pin!(each(target));
    loop {
        match approvals.try_next().await {
            Ok(Some(other)) => {
                if is_earlier_yes(&other, now) && last.as_ref().is_none_or(|last| made(last) < made(&other)) {
                    last = Some(other);
                }
            }
            Ok(None) => return compared(last.as_ref(), &now.spec.request, detail),
            Err(error) => return format!("Earlier approved calls cannot be looked at: {error}\n"),
        }
    }
}

fn made(approval: &Approval) -> Option<jiff::Timestamp> {
    approval.metadata.creation_timestamp.as_ref().map(|made| made.0)
}

/// Whether people said yes to `other`, which asked about the same operation of the same tool before `now` was asked.
fn is_earlier_yes(other: &Approval, now: &Approval) -> bool {
    let (request, spec) = (&other.spec.request, &other.spec);
    let may_be = other.is_sealed()
        && request.purpose == ApprovalPurpose::Call
        && (&request.tool, &request.operation) == (&now.spec.request.tool, &now.spec.request.operation)
        && other.metadata.uid != now.metadata.uid
        && made(other) <= made(now);
    // Last: it reads the whole request, and most others are about something else.
    if !may_be {
        return false;
    }
    let Ok(digest) = checked_digest("", request) else { return false };
    let counted = spec.counted(&digest.to_string());
    request.has_every_yes(&counted) && !counted.iter().any(|decision| decision.verdict == DecisionVerdict::Deny)
}

/// What changed since `last`, in lines.
pub fn compared(last: Option<&Approval>, now: &ApprovalRequest, detail: Detail) -> String {
    let Some(last) = last else {
        return format!(
            "No earlier approved call of {}/{} to compare with\n",
            visible(&now.tool),
            visible(now.operation_name())
        );
    };
    let (name, then) = (last.metadata.name.as_deref().unwrap_or_default(), &last.spec.request);
    let lines: Vec<String> = facts(then, now).into_iter().chain(changes(then, now, detail)).collect();
    let when = made(last).map(|made| format!(", asked {made}")).unwrap_or_default();
    let since = format!("the last approved call of this operation ({name}{when})");
    let cut = [then, now].iter().any(|request| request.arguments_truncated == Some(true));
    let cut = if cut { ", as far as both are here" } else { "" };
    if lines.is_empty() {
        return format!("The same as {since}{cut}\n");
    }
    format!("Changed since {since}{cut}:\n{}\n", lines.join("\n"))
}

fn facts(then: &ApprovalRequest, now: &ApprovalRequest) -> Vec<String> {
    let none = "no Credential".to_owned();
    let facts = [
        ("sent to", &then.destination, &now.destination),
        ("with", then.credential.as_ref().unwrap_or(&none), now.credential.as_ref().unwrap_or(&none)),
        ("defined as", &then.definition, &now.definition),
    ];
    let changed = facts.into_iter().filter(|(_, then, now)| then != now);
    changed.map(|(label, then, now)| format!("  {label}: {} -> {}", visible(then), visible(now))).collect()
}

/// The rows of the arguments that differ, with some around them.
fn changes(then: &ApprovalRequest, now: &ApprovalRequest, detail: Detail) -> Vec<String> {
    if then.arguments == now.arguments {
        return Vec::new();
    }
    let (old, new) = (rows(&then.arguments), rows(&now.arguments));
    let lines = lines(&old, &new, detail);
    let more = match detail {
        Detail::Folded => lines.len().saturating_sub(ROWS_MAX),
        Detail::Full => 0,
    };
    let shown = lines.len() - more;
    let rest = (more > 0).then(|| format!("  [.. {more} more rows of the difference: --full shows them ..]"));
    lines.into_iter().take(shown).chain(rest).collect()
}

fn lines(old: &[Row], new: &[Row], detail: Detail) -> Vec<String> {
    let ops = capture_diff_slices(Algorithm::Myers, old, new);
    let groups = similar::group_diff_ops(ops, CONTEXT);
    let mut lines = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        if index > 0 {
            lines.push("    ..".to_owned());
        }
        for change in group.iter().flat_map(|op: &DiffOp| op.iter_changes(old, new)) {
            let sign = match change.tag() {
                ChangeTag::Delete => '-',
                ChangeTag::Insert => '+',
                ChangeTag::Equal => ' ',
            };
            lines.push(format!("  {sign} {}", change.value_ref().shown(detail).0));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use belay_crds::ApprovalStatus;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::{Value, json};

    use super::super::question::tests::approval;
    use super::*;

    const YES: [(&str, &str, &str); 3] =
        [("careful", "ada", "Allow"), ("careful", "bob", "Allow"), ("owners", "zoe", "Allow")];

    fn made_at(mut approval: Approval, uid: &str, second: i64, sealed: bool) -> Approval {
        approval.metadata.uid = Some(uid.to_owned());
        approval.metadata.creation_timestamp = Some(Time(jiff::Timestamp::from_second(second).unwrap()));
        approval.status = Some(ApprovalStatus { sealed: Some(sealed), ..ApprovalStatus::default() });
        approval
    }

    #[test]
    fn only_a_sealed_yes_to_the_same_operation_before_is_compared_with() {
        let now = made_at(approval(&json!({}), &[]), "now", 100, false);
        let earlier = |change: &Value, decisions: &[(&str, &str, &str)], second: i64, sealed: bool| {
            is_earlier_yes(&made_at(approval(change, decisions), "then", second, sealed), &now)
        };
        assert!(earlier(&json!({}), &YES, 50, true));
        assert!(!earlier(&json!({}), &YES, 50, false), "still open");
        assert!(!earlier(&json!({}), &YES[..2], 50, true), "owners did not say yes");
        assert!(!earlier(&json!({}), &[YES[0], YES[1], YES[2], ("owners", "eve", "Deny")], 50, true), "denied");
        assert!(!earlier(&json!({}), &YES, 150, true), "later");
        assert!(!earlier(&json!({"operation": "get_repo"}), &YES, 50, true));
        assert!(!earlier(&json!({"tool": "gitlab"}), &YES, 50, true));
        assert!(!earlier(&json!({"purpose": "Unknown"}), &YES, 50, true));
        let mut changed = made_at(approval(&json!({}), &YES), "then", 50, true);
        changed.spec.request.arguments = "{}".to_owned();
        assert!(!is_earlier_yes(&changed, &now), "not what was signed");
        assert!(!is_earlier_yes(&now, &now));
    }

    #[test]
    fn what_changed_is_shown_by_rows() {
        let arguments = |force: bool, name: &str| json!({"arguments": format!(r#"{{"a":1,"b":2,"force":{force},"name":"{name}","o":1,"p":2,"q":3}}"#)});
        let mut then = made_at(approval(&arguments(false, "x"), &YES), "then", 50, true);
        let mut now = approval(&arguments(true, "x\u{202e}"), &[]).spec.request;
        now.destination = "http://elsewhere/mcp".to_owned();
        now.credential = None;
        let expected = r#"Changed since the last approved call of this operation (nightly-c1-x, asked 1970-01-01T00:00:50Z):
  sent to: http://github/mcp -> http://elsewhere/mcp
  with: github-token -> no Credential
      "a":1,
      "b":2,
  -   "force":false,
  -   "name":"x",
  +   "force":true,
  +   "name":"x\u{202e}",
      "o":1,
      "p":2,
"#;
        assert_eq!(compared(Some(&then), &now, Detail::Folded), expected);
        then.spec.request = now.clone();
        let same = compared(Some(&then), &now, Detail::Folded);
        assert!(same.starts_with("The same as the last approved call"), "{same}");
        assert_eq!(
            compared(None, &now, Detail::Folded),
            "No earlier approved call of github/delete_repo to compare with\n"
        );
    }

    #[test]
    fn a_long_difference_says_how_much_more_there_is() {
        let arguments = |from: u32| {
            let many: Vec<String> = (from..from + 100).map(|n| n.to_string()).collect();
            json!({"arguments": format!("[{}]", many.join(","))})
        };
        let then = made_at(approval(&arguments(1000), &YES), "then", 50, true);
        let now = approval(&arguments(5000), &[]).spec.request;
        let folded = compared(Some(&then), &now, Detail::Folded);
        assert!(folded.contains("[.. 142 more rows of the difference: --full shows them ..]"), "{folded}");
        assert!(compared(Some(&then), &now, Detail::Full).contains("+   5099"));
    }
}
