//! What the guard asks the API server. Reads are from quorum: a cache may lag behind whoever takes the rules away.

use std::time::Duration;

use async_trait::async_trait;
use belay_crds::Approval;
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};

use super::forgery::{Forgery, Proof, judge};
use crate::pod_template::random_suffix;

/// For each request.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Field manager of dry runs: nothing is ever kept under it.
const FORGER: &str = "belay-guard";
const SUFFIX_LENGTH: usize = 12;

/// A rule as it is installed.
#[derive(Clone, Debug, Default)]
pub struct Installed {
    pub policy: Option<ValidatingAdmissionPolicy>,
    pub binding: Option<ValidatingAdmissionPolicyBinding>,
}

/// Why a rule is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    /// RBAC refuses: it stays so until somebody grants it.
    Forbidden(String),
    Unanswered(String),
}

/// The API server, for tests to play.
#[async_trait]
pub trait ApiServer: Send + Sync {
    async fn rule(&self, name: &str) -> Result<Installed, Unread>;
    async fn forge(&self, forgery: &Forgery) -> Proof;
}

/// The real one.
pub struct Live(pub Client);

#[async_trait]
impl ApiServer for Live {
    async fn rule(&self, name: &str) -> Result<Installed, Unread> {
        let policies: Api<ValidatingAdmissionPolicy> = Api::all(self.0.clone());
        let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(self.0.clone());
        let both = async { tokio::try_join!(policies.get_opt(name), bindings.get_opt(name)) };
        match tokio::time::timeout(ANSWER_WITHIN, both).await {
            Ok(Ok((policy, binding))) => Ok(Installed { policy, binding }),
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(Unread::Forbidden(status.message.clone())),
            Ok(Err(error)) => Err(Unread::Unanswered(error.to_string())),
            Err(_) => Err(Unread::Unanswered(format!("no answer within {ANSWER_WITHIN:?}"))),
        }
    }

    async fn forge(&self, forgery: &Forgery) -> Proof {
        let approval = forgery.approval();
        let approvals: Api<Approval> =
            Api::namespaced(self.0.clone(), approval.metadata.namespace.as_deref().unwrap_or_default());
        let nobody = format!("nobody-{}", random_suffix(&mut rand::rng(), SUFFIX_LENGTH));
        let body = forgery.body(&nobody);
        let sent = async {
            match forgery {
                Forgery::Decision(_) => {
                    let params = PatchParams { dry_run: true, ..PatchParams::apply(FORGER) };
                    approvals.patch(&approval.name_any(), &params, &Patch::Apply(&body)).await.map(drop)
                }
                Forgery::Birth(_) => {
                    let object = serde_json::from_value(body).map_err(kube::Error::SerdeError)?;
                    let params = PostParams { dry_run: true, ..PostParams::default() };
                    approvals.create(&params, &object).await.map(drop)
                }
            }
        };
        match tokio::time::timeout(ANSWER_WITHIN, sent).await {
            Ok(answer) => match judge(answer) {
                // The same trouble twice shall look the same.
                Proof::Nothing(words) => Proof::Nothing(words.replace(&nobody, "nobody")),
                proof @ (Proof::Refused | Proof::Accepted | Proof::Gone | Proof::Ending(_) | Proof::Unanswered(_)) => {
                    proof
                }
            },
            Err(_) => Proof::Unanswered(format!("no answer within {ANSWER_WITHIN:?}")),
        }
    }
}
