//! `spec.http` of a Tool: an HTTP API, and what describes its operations.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::refs::NameRef;
use crate::tls::Tls;

/// An HTTP API. Requests go to `baseURL` followed by the path of an operation, and nowhere else: no redirect is followed.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[x_kube(validation = ("has(self.openAPI) != (has(self.operations) && size(self.operations) > 0)", "spec.http holds exactly one of openAPI and operations"), validation = ("!has(self.tls) || self.baseURL.startsWith('https://')", "spec.http.tls is for an https baseURL"))]
#[serde(rename_all = "camelCase")]
pub struct Http {
    /// What the path of every operation follows, such as `https://api.example.com/v1`. An http or https URL without
    /// user, query or fragment, at most 2048 characters. `servers` of an OpenAPI document is not looked at.
    #[serde(rename = "baseURL")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^https?://[^\s/?#@]+(/[^\s?#]*)?$"))]
    pub base_url: String,
    /// The Credential that requests carry. Naming one needs the verb `use` on it
    /// (credentials.decide.belay.dev). Default: none is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_ref: Option<NameRef>,
    /// Which authorities may vouch for the API's server. For https alone. Default: the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// The document that describes the operations.
    #[serde(default, rename = "openAPI", skip_serializing_if = "Option::is_none")]
    pub open_api: Option<OpenApi>,
    /// The operations, where no document describes them. At most 64, each name once, together at most 256 KiB.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub operations: Vec<HttpOperation>,
}

/// An OpenAPI 3.0 or 3.1 document, as JSON or YAML, at most 1 MiB.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OpenApi {
    /// Where the document is. The kubelet mounts it into probe and runner pods; the operator does not read it. Where it
    /// changes, what changed is held until people accept it.
    pub config_map_key_ref: ConfigMapKeyRef,
    /// The operationIds of the operations that are offered. At most 256, each once. Default: every operation of the
    /// document that has an operationId.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 128)), extend("x-kubernetes-list-type" = "set"))]
    pub operations: Vec<String>,
}

/// A key of a ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct ConfigMapKeyRef {
    /// Name of a ConfigMap of the same namespace. At most 253 characters.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// The key of its data, such as `openapi.yaml` or `ca.crt`. 1 to 253 characters.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// One request, and where its arguments go.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[x_kube(validation = ("!(self.method in ['GET', 'HEAD']) || !has(self.body)", "a GET or HEAD request has no body"))]
#[serde(rename_all = "camelCase")]
pub struct HttpOperation {
    /// The operation's name, as Agents and policies spell it. 1 to 128 letters, digits, `_`, `.` and `-`.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_.-]+$"))]
    pub name: String,
    /// What the model is told about it. At most 4096 characters. Default: method and path alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub description: Option<String>,
    /// The method of the request.
    pub method: HttpMethod,
    /// What follows `baseURL`, such as `/repos/{owner}/issues`. `{owner}` stands for the argument `owner`, which is
    /// required, percent-encoded and never more than a part of its segment. 1 to 1024 characters, without query and
    /// fragment.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^/[^\s?#]*$"))]
    pub path: String,
    /// Names of the arguments that are sent as query parameters; of a list, each value by itself. At most 32, each once.
    /// Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 64)), extend("x-kubernetes-list-type" = "set"))]
    pub query: Vec<String>,
    /// The arguments that are sent as headers. At most 16, each name once. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub headers: Vec<HttpHeader>,
    /// Name of the argument that is sent as a JSON body. 1 to 64 characters. Not for GET and HEAD. Default: no body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub body: Option<String>,
    /// The JSON Schema of the arguments: an object whose `properties` are the arguments named above, with `$ref`s into
    /// itself alone. Default: each is a string, the body an object, and those of the path are required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::any_object")]
    pub schema: Option<serde_json::Value>,
}

/// An argument that is sent as a header.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct HttpHeader {
    /// The header's name, such as `If-Match`. 1 to 64 letters, digits and `-`; none that frames, routes or
    /// authenticates the request.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9-]+$"))]
    #[x_kube(validation = ("!(self.lowerAscii() in ['accept', 'authorization', 'connection', 'content-encoding', 'content-length', 'content-type', 'cookie', 'expect', 'forwarded', 'host', 'idempotency-key', 'keep-alive', 'te', 'trailer', 'transfer-encoding', 'upgrade', 'via', 'x-http-method', 'x-http-method-override', 'x-method-override', 'x-original-url', 'x-real-ip', 'x-rewrite-url']) && !self.lowerAscii().startsWith('proxy-') && !self.lowerAscii().startsWith('x-forwarded-')", "this header frames, routes or authenticates the request: an argument goes into another"))]
    pub name: String,
    /// The argument whose value it carries. 1 to 64 characters.
    #[schemars(length(min = 1, max = 64))]
    pub argument: String,
}

/// Methods of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpMethod {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
}

impl HttpMethod {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// What definitions of an HTTP API were accepted from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpSource {
    /// Its `baseURL`.
    #[serde(rename = "baseURL")]
    #[schemars(length(max = 2048))]
    pub base_url: String,
    /// Its Credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_ref: Option<NameRef>,
    /// SHA-256 over all of `spec.http`.
    #[schemars(length(max = 128))]
    pub digest: String,
}
