//! `belay approvals`: what waits for people in a namespace, what runs out first on top.

use std::process::ExitCode;

use belay_crds::{Approval, ApprovalPurpose, visible};
use futures::TryStreamExt as _;
use jiff::Timestamp;

use super::each;
use crate::exit::CliError;
use crate::{Target, table};

const HEADER: [&str; 8] = ["NAME", "RUN", "PURPOSE", "TOOL", "OPERATION", "NEEDS", "GIVEN", "EXPIRES"];
const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

pub async fn list(target: &Target) -> Result<ExitCode, CliError> {
    let now = Timestamp::now();
    let open = each(target).try_filter(|approval| std::future::ready(!approval.is_sealed()));
    let mut open: Vec<(Timestamp, Vec<String>)> =
        open.map_ok(|approval| (approval.spec.request.expires_at.0, row(&approval, now))).try_collect().await?;
    if open.is_empty() {
        println!("nothing waits for a decision in namespace {}", target.namespace);
        return Ok(ExitCode::SUCCESS);
    }
    open.sort();
    table::print(&HEADER, open.into_iter().map(|(_, row)| row).collect());
    Ok(ExitCode::SUCCESS)
}

fn row(approval: &Approval, now: Timestamp) -> Vec<String> {
    let request = &approval.spec.request;
    let purpose = match request.purpose {
        ApprovalPurpose::Call => "Call",
        ApprovalPurpose::Drift => "Drift",
        ApprovalPurpose::Unknown => "Unknown",
        ApprovalPurpose::Question => "Question",
    };
    let needs: Vec<String> = (request.requirements.iter())
        .map(|one| match request.people_needed(one) {
            1 => visible(&one.policy),
            more => format!("{}({more})", visible(&one.policy)),
        })
        .collect();
    vec![
        approval.metadata.name.clone().unwrap_or_default(),
        visible(request.run_name()),
        purpose.to_owned(),
        visible(&request.tool),
        visible(request.operation_name()),
        needs.join(","),
        request.given(&approval.spec.counted(&request.digest)),
        left(request.expires_at.0.as_second() - now.as_second()),
    ]
}

/// The time that is left, in its two largest units.
fn left(seconds: i64) -> String {
    match seconds {
        ..=0 => "expired".to_owned(),
        1..MINUTE => format!("in {seconds}s"),
        MINUTE..HOUR => format!("in {}m", seconds / MINUTE),
        HOUR..DAY => format!("in {}h{}m", seconds / HOUR, seconds % HOUR / MINUTE),
        DAY.. => format!("in {}d{}h", seconds / DAY, seconds % DAY / HOUR),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::super::question::tests::approval;
    use super::*;

    #[test]
    fn a_row_says_what_is_asked_who_is_needed_and_how_long_there_is() {
        let now: Timestamp = "2026-11-30T07:30:00Z".parse().unwrap();
        let counted = approval(&json!({}), &[("careful", "ada", "Allow"), ("careful", "eve", "Allow")]);
        let expected =
            ["nightly-c1-x", "nightly", "Call", "github", "delete_repo", "careful(2),owners", "1/3", "in 2h30m"];
        assert_eq!(row(&counted, now), expected);
        assert_eq!(HEADER.len(), expected.len());
    }

    #[test]
    fn time_that_is_left_is_told_in_words() {
        let words: Vec<String> = [-5, 0, 59, 60, 3599, 3600, 86_399, 90_000].map(left).to_vec();
        assert_eq!(words, ["expired", "expired", "in 59s", "in 1m", "in 59m", "in 1h0m", "in 23h59m", "in 1d1h"]);
    }
}
