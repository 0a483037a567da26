//! Credential: names a key of a Secret and where it may be sent. Never holds a value.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::refs::NameRef;

/// A key that Models and Tools may use by name. Creating one needs `get` on the Secret that it names; naming
/// one in a Model or Tool needs the verb `use` on it (credentials.decide.belay.dev).
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "belay.dev",
    version = "v1alpha1",
    kind = "Credential",
    plural = "credentials",
    singular = "credential",
    shortname = "bcred",
    category = "belay",
    namespaced,
    status = "CredentialStatus",
    derive = "PartialEq",
    printcolumn(name = "SECRET", type_ = "string", json_path = ".spec.secretKeyRef.name"),
    printcolumn(name = "HOSTS", type_ = "string", json_path = ".spec.hosts"),
    printcolumn(name = "READY", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "REASON", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct CredentialSpec {
    /// Where the value is kept. The kubelet mounts it into runner pods; the operator cannot read it.
    pub secret_key_ref: SecretKeyRef,
    /// How the value reaches a request: exactly one of `bearer` and `header`.
    pub inject: Inject,
    /// Where it may ever be sent: 1 to 16 host names in lower case, exact or with one leading wildcard label
    /// such as `*.example.com`, which stands for exactly one label. What follows the wildcard has two labels or
    /// more: `*.com` is refused. May change; runs under way keep theirs.
    #[schemars(
        length(min = 1, max = 16),
        inner(
            length(min = 1, max = 253),
            regex(
                pattern = r"^(\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
            )
        )
    )]
    pub hosts: Vec<String>,
    /// ApprovalPolicies that judge every call that uses this Credential, whichever Agent makes it. At most 8, each
    /// named once. Default: none. May change; runs under way keep theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub policy_refs: Vec<NameRef>,
}

/// A key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct SecretKeyRef {
    /// Name of a Secret of the same namespace. Writing this needs the verb `get` on that Secret. At most 253
    /// characters.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// The key of its data that holds the value, 1 to 253 characters. It holds exactly the value: a trailing
    /// newline is reported and the Credential is not Ready.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// Exactly one of the fields.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[x_kube(validation = ("has(self.bearer) != has(self.header)", "spec.inject holds exactly one of bearer and header"))]
pub struct Inject {
    /// Sends `Authorization: Bearer VALUE`. Takes no settings: `bearer: {}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer: Option<Bearer>,
    /// Sends a header of your choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<InjectHeader>,
}

/// Takes no settings: `bearer: {}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Bearer {}

/// A header that carries the value.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct InjectHeader {
    /// The header's name, such as `x-api-key`. 1 to 64 letters, digits and `-`; none that frames or routes the
    /// request, such as `Host`.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9-]+$"))]
    #[x_kube(validation = ("!(self.lowerAscii() in ['host', 'connection', 'content-length', 'content-type', 'transfer-encoding', 'te', 'trailer', 'upgrade', 'expect'])", "this header frames or routes the request: a credential goes into another"))]
    pub name: String,
    /// The header's value, in which `{}` stands once for the credential's, such as `token {}`. Default `{}`. 2 to
    /// 256 printable ASCII characters, no other braces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 256), regex(pattern = r"^[\x20-\x7a|~]*\{\}[\x20-\x7a|~]*$"))]
    pub format: Option<String>,
}

/// What a probe pod found out about the key, never what it holds.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialStatus {
    /// Ready, Reconciling and Stalled as kstatus reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The `metadata.generation` that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}
