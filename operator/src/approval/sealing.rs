//! Ends a question in the API server: no decision is added once it is sealed.

use belay_crds::{Approval, ApprovalOutcome, ApprovalStatus};
use belay_protocol::Digest;

use super::given;
use crate::controller::Failure;
use crate::writes::Writes;

/// Seals that very version: one that was decided on meanwhile is a lost race, and read again.
pub async fn seal(
    writes: &Writes,
    approval: Approval,
    digest: Digest,
    outcome: ApprovalOutcome,
) -> Result<Approval, Failure> {
    if approval.is_sealed() {
        return Ok(approval);
    }
    let given = Some(given(&approval, digest));
    let status = ApprovalStatus { sealed: Some(true), given, outcome: Some(outcome) };
    writes.apply_status(&approval, &status).await
}

/// `GIVEN` follows the decisions, one write for each.
pub async fn count(writes: &Writes, approval: &Approval, digest: Digest) -> Result<(), Failure> {
    let status = approval.status.clone().unwrap_or_default();
    let given = given(approval, digest);
    if approval.is_sealed() || status.given.as_ref() == Some(&given) || approval.spec.decisions.is_empty() {
        return Ok(());
    }
    writes.apply_status(approval, &ApprovalStatus { given: Some(given), ..status }).await.map(drop)
}
