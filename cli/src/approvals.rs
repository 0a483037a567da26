//! Approvals in the terminal: what is asked, shown from the very bytes that a decision signs.

mod answer;
mod approve;
mod arguments;
mod deciding;
mod difference;
mod grant;
mod inquiry;
mod list;
mod look_alikes;
mod offer;
mod question;
mod resolve;
mod show;

use belay_crds::{Approval, ApprovalPurpose, ApprovalRequest};
use belay_protocol::Digest;
use belay_protocol::call::request_digest;
use futures::stream::{self, Stream, StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use kube::api::{Api, ListParams};

pub use self::answer::{AnswerArguments, answer};
pub use self::approve::{ApproveArguments, DenyArguments, approve, deny};
pub use self::deciding::{Manner, Refused, Wish, decide};
pub use self::list::list;
pub use self::resolve::{ResolveArguments, resolve};
pub use self::show::{ShowArguments, show};
use crate::Target;
use crate::exit::CliError;

/// Approvals in one answer of the API server: each can hold 256 KiB of arguments.
const PAGE: u32 = 50;

async fn fetch(target: &Target, name: &str) -> Result<Approval, CliError> {
    let found = api(target).get_opt(name).await.map_err(|e| CliError::api(format!("reading Approval {name}"), e))?;
    found.ok_or_else(|| CliError::NotFound {
        kind: "Approval",
        name: name.to_owned(),
        namespace: target.namespace.clone(),
    })
}

/// The Approval that asks about the Tool's definitions.
pub async fn drift_of(target: &Target, tool: &str) -> Result<String, CliError> {
    let now = Timestamp::now();
    let mut open = std::pin::pin!(each(target).try_filter(|one| std::future::ready(asks_about(one, tool, now))));
    let found = open.try_next().await?.and_then(|approval| approval.metadata.name);
    found.ok_or_else(|| {
        CliError::Failed(format!(
            "nothing of Tool {tool} in namespace {} waits to be accepted: its server offers what was accepted, was not \
             asked yet, or people said no. {} get tool {tool} -o yaml says which, under status",
            target.namespace,
            target.place.kubectl()
        ))
    })
}

fn asks_about(approval: &Approval, tool: &str, now: Timestamp) -> bool {
    let request = &approval.spec.request;
    let drift = request.purpose == ApprovalPurpose::Drift && request.tool == tool;
    drift && !approval.is_sealed() && request.expires_at.0 > now
}

/// Every Approval of the namespace, a page at a time.
fn each(target: &Target) -> impl Stream<Item = Result<Approval, CliError>> {
    let pages = stream::try_unfold(Some(ListParams::default().limit(PAGE)), move |next| async move {
        let Some(params) = next else { return Ok(None) };
        let page = api(target).list(&params).await.map_err(|e| CliError::api("listing Approvals", e))?;
        let token = page.metadata.continue_.filter(|token| !token.is_empty());
        let next = token.map(|token| ListParams::default().limit(PAGE).continue_token(&token));
        Ok::<_, CliError>(Some((page.items, next)))
    });
    pages.map_ok(|items| stream::iter(items).map(Ok)).try_flatten()
}

fn api(target: &Target) -> Api<Approval> {
    Api::namespaced(target.client.clone(), &target.namespace)
}

fn policies(request: &ApprovalRequest) -> Vec<String> {
    request.requirements.iter().map(|one| one.policy.clone()).collect()
}

/// The digest of what is shown; a stored one that differs was not made over it.
fn checked_digest(name: &str, request: &ApprovalRequest) -> Result<Digest, CliError> {
    let whole = serde_json::to_value(request).ok().and_then(|value| request_digest(&value).ok());
    whole.filter(|digest| digest.to_string() == request.digest).ok_or_else(|| {
        CliError::Failed(format!(
            "Approval {name}: spec.request.digest is not the one over its request, so nobody can say what a decision \
             would sign. Use the belay of the operator's version; if it is, tell whoever runs the cluster"
        ))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::{Arc, Mutex};

    use serde_json::json;

    use super::question::tests::approval;
    use super::*;
    use crate::place::Place;

    /// An API server with so many Approvals that answers with no more than it is asked for.
    fn crowd(many: usize, asked: &Arc<Mutex<Vec<String>>>) -> Target {
        let asked = Arc::clone(asked);
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
            let number = |name: &str| value(name).and_then(|it| it.parse::<usize>().ok());
            let (from, limit) = (number("continue").unwrap_or(0), number("limit").unwrap_or(many));
            let to = (from + limit).min(many);
            let one = serde_json::to_value(approval(&json!({}), &[])).unwrap();
            let next = if to < many { to.to_string() } else { String::new() };
            let list = json!({
                "apiVersion": "belay.dev/v1alpha1", "kind": "ApprovalList",
                "metadata": {"resourceVersion": "1", "continue": next}, "items": vec![one; to - from],
            });
            asked.lock().unwrap().push(query);
            let body = kube::client::Body::from(serde_json::to_vec(&list).unwrap());
            std::future::ready(Ok::<_, tower::BoxError>(http::Response::new(body)))
        });
        Target { client: kube::Client::new(service, "team"), namespace: "team".to_owned(), place: Place::default() }
    }

    #[tokio::test]
    async fn ten_thousand_approvals_are_read_a_page_at_a_time() {
        let asked = Arc::default();
        let target = crowd(10_000, &asked);
        let read = each(&target).try_fold(0, |read, _| std::future::ready(Ok(read + 1))).await.unwrap();
        assert_eq!(read, 10_000);
        let asked = asked.lock().unwrap();
        assert_eq!(asked.len(), 200);
        assert!(asked.iter().all(|query| query.contains("limit=50")), "{:?}", asked.first());
    }

    #[test]
    fn a_request_that_was_changed_cannot_be_signed() {
        let request = approval(&json!({}), &[]).spec.request;
        assert!(checked_digest("a", &request).is_ok());
        let changed = ApprovalRequest { arguments: "{}".to_owned(), ..request };
        assert!(checked_digest("a", &changed).is_err());
    }

    #[test]
    fn the_question_about_a_tool_is_the_open_one() {
        let now: Timestamp = "2026-11-30T09:00:00Z".parse().unwrap();
        let late: Timestamp = "2026-11-30T10:00:00Z".parse().unwrap();
        let open = super::question::tests::drift();
        assert!(asks_about(&open, "github", now));
        assert!(!asks_about(&open, "files", now) && !asks_about(&open, "github", late));
        let mut sealed = open.clone();
        sealed.status = Some(belay_crds::ApprovalStatus { sealed: Some(true), ..Default::default() });
        assert!(!asks_about(&sealed, "github", now));
        assert!(!asks_about(&approval(&json!({}), &[]), "github", now), "it asks about a call");
    }
}
