//! Credential: names a key of a Secret and where it may be sent. Never holds a value.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::http_api::HttpMethod;
use crate::refs::NameRef;
use crate::tls::Tls;

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
    /// How the value reaches a request: exactly one of `bearer`, `header`, `basic`, `query` and
    /// `oauth2ClientCredentials`.
    pub inject: Inject,
    /// Where it may ever be sent: 1 to 16 host names in lower case, exact or with one leading wildcard label
    /// such as `*.example.com`, which stands for exactly one label. What follows the wildcard has two labels or
    /// more: `*.com` is refused. Over plain http it goes only to a Service of this cluster whose name stands here
    /// without a wildcard, as the URL spells it: `llm` or `llm.team.svc`. May change; runs under way keep theirs.
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
    /// With which HTTP methods it may be sent, at most 7, each once. Default: with every one. Models and MCP servers
    /// are asked with POST; an MCP session is ended with DELETE. May change; runs under way keep theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 7), extend("x-kubernetes-list-type" = "set"))]
    pub methods: Vec<HttpMethod>,
    /// Below which paths it may be sent, at most 16, such as `/repos/acme`, which covers that path and everything
    /// below it, but not `/repos/acme-secret`. 1 to 256 characters each, without empty, `.` or `..` segments and
    /// without percent-encoding: paths of requests are compared decoded. Default: with every path. May change; runs
    /// under way keep theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "set"),
        inner(length(min = 1, max = 256), regex(pattern = r"^/(\.?[A-Za-z0-9_~!$&'()*+,;=:@-][A-Za-z0-9._~!$&'()*+,;=:@-]*/?)*$"))
    )]
    pub path_prefixes: Vec<String>,
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
#[x_kube(validation = ("[has(self.bearer), has(self.header), has(self.basic), has(self.query), has(self.oauth2ClientCredentials)].filter(is, is).size() == 1", "spec.inject holds exactly one of bearer, header, basic, query and oauth2ClientCredentials"))]
pub struct Inject {
    /// Sends `Authorization: Bearer VALUE`. Takes no settings: `bearer: {}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer: Option<Bearer>,
    /// Sends a header of your choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<InjectHeader>,
    /// Sends `Authorization: Basic ..` with a user name and the value as its password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<InjectBasic>,
    /// Adds a parameter to the URL's query. For APIs that take a key nowhere else: servers write URLs into their logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<InjectQuery>,
    /// Asks a token endpoint for an access token (RFC 6749, section 4.4), with the value as the client's secret, and
    /// sends `Authorization: Bearer TOKEN`. The token stays in the runner's memory and is asked for again before it
    /// expires, or when the value has changed.
    #[serde(default, rename = "oauth2ClientCredentials", skip_serializing_if = "Option::is_none")]
    pub oauth2_client_credentials: Option<ClientCredentials>,
}

/// Takes no settings: `bearer: {}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Bearer {}

/// A user whose password is the value.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct InjectBasic {
    /// The user's name, which is no secret. 1 to 128 printable ASCII characters without `:`.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[\x20-\x39\x3b-\x7e]+$"))]
    pub username: String,
}

/// A parameter of the URL's query that carries the value.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct InjectQuery {
    /// The parameter's name, such as `key`. One of that name in the request's own URL is replaced. 1 to 64 letters,
    /// digits, `.`, `_`, `~` and `-`.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9._~-]+$"))]
    pub name: String,
}

/// How a client that was registered beforehand gets its access tokens.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[x_kube(validation = ("self.tokenURL.startsWith('https://') || self.tokenURL.matches('^http://[a-z0-9-]+([.][a-z0-9-]+[.]svc([.]cluster[.]local)?)?(:[0-9]+)?(/|$)')", "spec.inject.oauth2ClientCredentials.tokenURL is https, or http to a Service of this cluster: the client's secret goes there"), validation = ("!has(self.tls) || self.tokenURL.startsWith('https://')", "spec.inject.oauth2ClientCredentials.tls is for an https tokenURL"))]
#[serde(rename_all = "camelCase")]
pub struct ClientCredentials {
    /// The token endpoint, such as `https://login.example/oauth2/token`. https, or http to a Service of this cluster;
    /// without user, query or fragment. At most 2048 characters. The value itself is sent nowhere else: `hosts` are
    /// where the token may go.
    #[serde(rename = "tokenURL")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^https?://[^\s/?#@]+(/[^\s?#]*)?$"))]
    pub token_url: String,
    /// Which authorities may vouch for the token endpoint. For https alone. Default: the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// The client's id at that endpoint, which is no secret. 1 to 256 printable ASCII characters.
    #[serde(rename = "clientID")]
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[\x20-\x7e]+$"))]
    pub client_id: String,
    /// What the token is to be good for: at most 32 scopes of 1 to 128 characters each, asked for in this order.
    /// Default: whatever the endpoint gives this client.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128), regex(pattern = r"^[\x21\x23-\x5b\x5d-\x7e]+$")))]
    pub scopes: Vec<String>,
    /// Sent as `audience`, for endpoints that want one. 1 to 512 printable ASCII characters. Default: not sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[\x21-\x7e]+$"))]
    pub audience: Option<String>,
    /// Sent as `resource` (RFC 8707): the URL of the server that the token is for, which MCP's authorization asks for.
    /// 1 to 512 printable ASCII characters. Default: not sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[\x21-\x7e]+$"))]
    pub resource: Option<String>,
    /// Where the client's id and secret stand in the request for a token: `Header` (HTTP Basic, which every endpoint
    /// has to take) or `Body`. Default `Header`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_authentication: Option<ClientAuthentication>,
}

/// Where a client's id and secret stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ClientAuthentication {
    #[default]
    Header,
    Body,
}

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
