//! What runner and probe pods have in common: identity, isolation, mounts. Pure; knows neither runs nor probes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use belay_protocol::plan::{CaBundle, HttpOperations, PlanCredential};
use belay_protocol::{AUTHORITIES_DIR, CREDENTIALS_DIR, DOCUMENTS_DIR, TOKEN_AUDIENCE, TOKEN_FILE};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, EnvVar, KeyToPath, Pod, PodSecurityContext, PodSpec,
    ProjectedVolumeSource, ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext,
    ServiceAccountTokenProjection, Toleration, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use parking_lot::RwLock;
use rand::Rng;
use rand::distr::{Distribution, Uniform};

use crate::network::NetworkSettings;

/// Value of `app.kubernetes.io/managed-by` on everything that the operator creates.
pub const MANAGED_BY: &str = "belay-operator";
/// Name of the one container.
pub const CONTAINER: &str = "runner";
/// The nonroot user of the runner image.
const USER: i64 = 65532;
const TOKEN_SECONDS: i64 = 600;
const GRACE_SECONDS: i64 = 30;
const TOKEN_VOLUME: &str = "token";
/// A Kubernetes label's value holds no more.
const LABEL_MAX: usize = 63;

/// What the installation decides about every pod.
#[derive(Clone, Debug, PartialEq)]
pub struct PodSettings {
    pub image: String,
    pub pull_policy: &'static str,
    pub operator_address: String,
    /// Authorities that may vouch for the operator.
    pub ca_pem: String,
    pub tolerations: Vec<Toleration>,
    pub node_selector: BTreeMap<String, String>,
    pub network: NetworkSettings,
}

/// The settings that count now: the authorities change when the operator's certificate is renewed. Cheap to clone.
#[derive(Clone)]
pub struct SharedSettings(Arc<RwLock<PodSettings>>);

impl SharedSettings {
    #[must_use]
    pub fn new(settings: PodSettings) -> Self {
        Self(Arc::new(RwLock::new(settings)))
    }

    #[must_use]
    pub fn current(&self) -> PodSettings {
        self.0.read().clone()
    }

    /// Pods from now on trust these authorities.
    pub fn trust(&self, ca_pem: String) {
        self.0.write().ca_pem = ca_pem;
    }
}

/// What the process in the pod is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Run,
    Probe,
}

/// What one pod is.
#[derive(Clone, Debug)]
pub struct PodShape {
    pub namespace: String,
    pub name: String,
    pub mode: Mode,
    pub labels: BTreeMap<String, String>,
    pub owner: OwnerReference,
    pub credentials: Vec<Mount>,
    pub documents: Vec<Document>,
    pub authorities: Authorities,
    pub resources: ResourceRequirements,
    pub active_deadline_seconds: i64,
}

/// A Secret's key that the kubelet puts where the runner looks for a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub credential: String,
    pub secret_name: String,
    pub secret_key: String,
}

impl From<&PlanCredential> for Mount {
    fn from(credential: &PlanCredential) -> Self {
        Self {
            credential: credential.name.clone(),
            secret_name: credential.secret_name.clone(),
            secret_key: credential.secret_key.clone(),
        }
    }
}

/// A ConfigMap's key that the kubelet puts where the runner looks for a tool's OpenAPI document. The operator reads no
/// ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub tool: String,
    pub config_map: String,
    pub key: String,
}

impl Document {
    /// The one that describes this tool's operations, if one does.
    #[must_use]
    pub fn of(tool: &str, http: Option<&HttpOperations>) -> Option<Self> {
        match http? {
            HttpOperations::Document { config_map, key, .. } => {
                Some(Self { tool: tool.to_owned(), config_map: config_map.clone(), key: key.clone() })
            }
            HttpOperations::Inline(_) => None,
        }
    }
}

/// Keys of ConfigMaps that hold certificates of authorities, by ConfigMap. The operator reads none of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authorities(BTreeMap<String, BTreeSet<String>>);

impl<'a> FromIterator<&'a CaBundle> for Authorities {
    fn from_iter<I: IntoIterator<Item = &'a CaBundle>>(bundles: I) -> Self {
        let mut keys: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for CaBundle { config_map, key } in bundles {
            keys.entry(config_map.clone()).or_default().insert(key.clone());
        }
        Self(keys)
    }
}

/// The whole pod, as the `restricted` Pod Security Standard takes it.
#[must_use]
pub fn build_pod(shape: PodShape, settings: &PodSettings) -> Pod {
    let metadata = ObjectMeta {
        namespace: Some(shape.namespace.clone()),
        name: Some(shape.name.clone()),
        labels: Some(shape.labels.clone()),
        // No proxy of a mesh in between: the operator checks that the peer's address is the pod's.
        annotations: Some(strings([("linkerd.io/inject", "disabled"), ("sidecar.istio.io/inject", "false")])),
        owner_references: Some(vec![shape.owner.clone()]),
        ..ObjectMeta::default()
    };
    let spec = PodSpec {
        restart_policy: Some("Never".to_owned()),
        service_account_name: Some("default".to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        active_deadline_seconds: Some(shape.active_deadline_seconds),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        security_context: Some(pod_security()),
        volumes: Some(volumes(&shape)),
        containers: vec![container(shape, settings)],
        tolerations: Some(tolerations(&settings.tolerations)),
        node_selector: (!settings.node_selector.is_empty()).then(|| settings.node_selector.clone()),
        ..PodSpec::default()
    };
    Pod { metadata, spec: Some(spec), status: None }
}

/// A pod on a node that no longer answers is given up at once, so that its run goes on elsewhere; Kubernetes
/// would leave it there for five minutes.
fn tolerations(chosen: &[Toleration]) -> Vec<Toleration> {
    let at_once = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].map(|key| Toleration {
        key: Some(key.to_owned()),
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        toleration_seconds: Some(0),
        ..Toleration::default()
    });
    chosen.iter().cloned().chain(at_once).collect()
}

fn container(shape: PodShape, settings: &PodSettings) -> Container {
    let mode = match shape.mode {
        Mode::Run => "run",
        Mode::Probe => "probe",
    };
    let mounts = mounts(&shape);
    Container {
        name: CONTAINER.to_owned(),
        image: Some(settings.image.clone()),
        image_pull_policy: Some(settings.pull_policy.to_owned()),
        env: Some(variables(mode, settings)),
        resources: Some(shape.resources),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn variables(mode: &str, settings: &PodSettings) -> Vec<EnvVar> {
    let mut variables = vec![
        variable("BELAY_MODE", mode),
        variable("BELAY_OPERATOR_ADDR", &settings.operator_address),
        variable("BELAY_OPERATOR_CA_PEM", &settings.ca_pem),
    ];
    variables.extend(settings.network.proxy.as_ref().map(|proxy| variable("BELAY_EGRESS_PROXY", &proxy.to_string())));
    let ranges = settings.network.ranges.to_string();
    variables.extend((!ranges.is_empty()).then(|| variable("BELAY_CLUSTER_RANGES", &ranges)));
    variables
}

fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        fs_group: Some(USER),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

fn volumes(shape: &PodShape) -> Vec<Volume> {
    let token = ServiceAccountTokenProjection {
        audience: Some(TOKEN_AUDIENCE.to_owned()),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: file_of(TOKEN_FILE).to_owned(),
    };
    let projected = ProjectedVolumeSource {
        sources: Some(vec![VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() }]),
        ..ProjectedVolumeSource::default()
    };
    let token = Volume { name: TOKEN_VOLUME.to_owned(), projected: Some(projected), ..Volume::default() };
    let secrets = shape.credentials.iter().enumerate().map(|(index, mount)| Volume {
        name: volume_name("credential", index),
        secret: Some(SecretVolumeSource {
            secret_name: Some(mount.secret_name.clone()),
            // What is missing is reported by the runner, in words, instead of a pod that never starts.
            optional: Some(true),
            default_mode: Some(0o440),
            items: Some(vec![KeyToPath { key: mount.secret_key.clone(), path: "value".to_owned(), mode: None }]),
        }),
        ..Volume::default()
    });
    let documents = shape.documents.iter().enumerate().map(|(index, document)| {
        config_map_volume(
            volume_name("document", index),
            &document.config_map,
            vec![KeyToPath { key: document.key.clone(), path: "document".to_owned(), mode: None }],
        )
    });
    let authorities = shape.authorities.0.iter().enumerate().map(|(index, (config_map, keys))| {
        let item = |key: &String| KeyToPath { key: key.clone(), path: key.clone(), mode: None };
        config_map_volume(volume_name("authorities", index), config_map, keys.iter().map(item).collect())
    });
    std::iter::once(token).chain(secrets).chain(documents).chain(authorities).collect()
}

fn config_map_volume(name: String, config_map: &str, items: Vec<KeyToPath>) -> Volume {
    let source = ConfigMapVolumeSource {
        name: config_map.to_owned(),
        // As for Secrets.
        optional: Some(true),
        default_mode: Some(0o440),
        items: Some(items),
    };
    Volume { name, config_map: Some(source), ..Volume::default() }
}

fn mounts(shape: &PodShape) -> Vec<VolumeMount> {
    let mount = |name: String, path: String| VolumeMount {
        name,
        mount_path: path,
        read_only: Some(true),
        ..VolumeMount::default()
    };
    let token = mount(TOKEN_VOLUME.to_owned(), folder_of(TOKEN_FILE).to_owned());
    let secrets =
        shape.credentials.iter().enumerate().map(|(index, one)| {
            mount(volume_name("credential", index), format!("{CREDENTIALS_DIR}/{}", one.credential))
        });
    let documents = shape
        .documents
        .iter()
        .enumerate()
        .map(|(index, one)| mount(volume_name("document", index), format!("{DOCUMENTS_DIR}/{}", one.tool)));
    let authorities =
        shape.authorities.0.keys().enumerate().map(|(index, config_map)| {
            mount(volume_name("authorities", index), format!("{AUTHORITIES_DIR}/{config_map}"))
        });
    std::iter::once(token).chain(secrets).chain(documents).chain(authorities).collect()
}

/// Names of credentials and tools may be longer than a volume's and hold dots.
fn volume_name(what: &str, index: usize) -> String {
    format!("{what}-{index}")
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn file_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, file)| file)
}

fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None }
}

/// `requests` and `limits` of cpu and memory, as the API server writes them.
#[must_use]
pub fn resources(requests: &BTreeMap<String, String>, limits: &BTreeMap<String, String>) -> ResourceRequirements {
    let quantities = |of: &BTreeMap<String, String>| -> Option<BTreeMap<String, Quantity>> {
        (!of.is_empty()).then(|| of.iter().map(|(name, value)| (name.clone(), Quantity(value.clone()))).collect())
    };
    ResourceRequirements { requests: quantities(requests), limits: quantities(limits), claims: None }
}

/// The recommended labels of a pod of ours.
#[must_use]
pub fn base_labels(component: &str) -> BTreeMap<String, String> {
    strings([
        ("app.kubernetes.io/name", "belay-runner"),
        ("app.kubernetes.io/component", component),
        ("app.kubernetes.io/part-of", "belay"),
        ("app.kubernetes.io/managed-by", MANAGED_BY),
    ])
}

/// A name as a label's value: cut where a label ends, and never ending in what a label may not end in.
#[must_use]
pub fn label_value(name: &str) -> String {
    let cut: String = name.chars().take(LABEL_MAX).collect();
    cut.trim_end_matches(['-', '.', '_']).to_owned()
}

/// `length` random characters of those that a pod's name may hold.
pub fn random_suffix(random: &mut impl Rng, length: usize) -> String {
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let Ok(index) = Uniform::new(0, ALPHABET.len()) else { return String::new() };
    (0..length).filter_map(|_| ALPHABET.get(index.sample(random)).map(|byte| char::from(*byte))).collect()
}

fn strings<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_label_never_ends_in_what_labels_may_not_end_in() {
        assert_eq!(label_value("triage"), "triage");
        let long = format!("{}-.b", "a".repeat(61));
        assert_eq!(label_value(&long), "a".repeat(61));
    }

    #[test]
    fn suffixes_have_the_length_asked_for_and_differ() {
        let mut random = rand::rng();
        let (one, two) = (random_suffix(&mut random, 8), random_suffix(&mut random, 8));
        assert_eq!((one.len(), two.len()), (8, 8));
        assert_ne!(one, two);
        assert!(one.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
    }
}
