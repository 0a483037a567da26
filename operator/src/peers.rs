//! Who a token belongs to: TokenReview, then the pod that the token is bound to, as the API server has it now.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use belay_crds::RUN_UID_LABEL;
use belay_protocol::TOKEN_AUDIENCE;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use crate::metrics::Metrics;
use crate::namespaces::Namespaces;
use crate::service::{PeerError, PeerPod, Peers};

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const ADDRESS_LOOKS: u32 = 100;
const ADDRESS_LOOK_EVERY: Duration = Duration::from_millis(20);
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Vouches for pods by the API server's word.
pub struct TokenPeers {
    pub client: Client,
    pub namespaces: Namespaces,
    pub metrics: Metrics,
}

#[async_trait]
impl Peers for TokenPeers {
    async fn vouch(&self, token: &str) -> Result<PeerPod, PeerError> {
        self.metrics.token_reviews.inc();
        let bound = bound_pod(self.review(token).await?)?;
        let pod = self.pod_with_address(&bound).await?;
        if pod.uid().as_deref() != Some(bound.uid.as_str()) {
            return Err(PeerError::Refused(format!("the token is bound to an earlier pod {}", bound.name)));
        }
        let run_uid = pod.labels().get(RUN_UID_LABEL).cloned();
        Ok(PeerPod { ip: address(&pod), run_uid, ..bound })
    }
}

impl TokenPeers {
    async fn review(&self, token: &str) -> Result<UserInfo, PeerError> {
        let audiences = vec![TOKEN_AUDIENCE.to_owned()];
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(audiences) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await;
        let status = answer.map_err(|error| PeerError::Unavailable(error.to_string()))?.status.unwrap_or_default();
        let ours = status.audiences.iter().flatten().any(|audience| audience == TOKEN_AUDIENCE);
        match status.user {
            Some(user) if status.authenticated == Some(true) && ours => Ok(user),
            Some(_) | None => {
                let why = status.error.unwrap_or_else(|| "the API server does not know this token".to_owned());
                Err(PeerError::Refused(why))
            }
        }
    }

    /// A runner says Hello within milliseconds; the kubelet reports its pod's address up to a second later.
    async fn pod_with_address(&self, bound: &PeerPod) -> Result<Pod, PeerError> {
        for _ in 0..ADDRESS_LOOKS {
            let cached = self.namespaces.pod(&bound.namespace, &bound.name);
            if let Some(pod) = cached.filter(|pod| address(pod).is_some()) {
                return Ok((*pod).clone());
            }
            tokio::time::sleep(ADDRESS_LOOK_EVERY).await;
        }
        self.pod(bound).await
    }

    /// From the cache where it knows pod and address; a pod that just started may be newer than the cache.
    async fn pod(&self, bound: &PeerPod) -> Result<Pod, PeerError> {
        let cached = self.namespaces.pod(&bound.namespace, &bound.name);
        if let Some(pod) = cached.filter(|pod| pod.uid().as_deref() == Some(&bound.uid) && address(pod).is_some()) {
            return Ok((*pod).clone());
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &bound.namespace);
        match pods.get_opt(&bound.name).await {
            Ok(Some(pod)) => Ok(pod),
            Ok(None) => Err(PeerError::Refused(format!("pod {} is gone", bound.name))),
            Err(error) => Err(PeerError::Unavailable(error.to_string())),
        }
    }
}

/// The pod that the token is bound to, its address not known yet.
fn bound_pod(user: UserInfo) -> Result<PeerPod, PeerError> {
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| extra.get(key).and_then(|values| values.first()).cloned();
    let account = user.username.as_deref().and_then(|name| name.strip_prefix(SERVICE_ACCOUNT));
    let namespace = account.and_then(|rest| rest.split_once(':')).map(|(namespace, _)| namespace.to_owned());
    match (namespace, one(POD_NAME), one(POD_UID)) {
        (Some(namespace), Some(name), Some(uid)) => Ok(PeerPod { namespace, name, uid, run_uid: None, ip: None }),
        _ => Err(PeerError::Refused("the token is not bound to a pod".to_owned())),
    }
}

fn address(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn user(value: serde_json::Value) -> UserInfo {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_pod_is_the_one_that_the_token_is_bound_to() {
        let bound = bound_pod(user(json!({
            "username": "system:serviceaccount:triage:default",
            "extra": {POD_NAME: ["belay-run-a"], POD_UID: ["uid-a"]},
        })));
        let expected = PeerPod {
            namespace: "triage".into(),
            name: "belay-run-a".into(),
            uid: "uid-a".into(),
            run_uid: None,
            ip: None,
        };
        assert_eq!(bound, Ok(expected));
    }

    #[test]
    fn a_token_that_is_bound_to_no_pod_and_a_persons_are_refused() {
        let unbound = json!({"username": "system:serviceaccount:triage:default"});
        let person = json!({"username": "ada", "extra": {POD_NAME: ["belay-run-a"], POD_UID: ["u"]}});
        for value in [unbound, person] {
            assert!(matches!(bound_pod(user(value)), Err(PeerError::Refused(_))));
        }
    }
}
