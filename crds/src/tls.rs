//! How the certificate of a server is verified.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::http_api::ConfigMapKeyRef;

/// How the certificate of one server is verified. It always has to name the host of the URL.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Certificates of authorities in PEM, at most 512 KiB. They alone may vouch for this server, and for no other: the
    /// public ones do not count beside them, unless the key holds those too. The kubelet mounts the key into probe and
    /// runner pods, where it is read for every request; the operator does not read it. Which key it is may
    /// change, and runs under way keep theirs; what it holds may change at any time.
    #[x_kube(validation = ("self.key != '.' && !self.key.startsWith('..')", "no key of a ConfigMap is called like that"))]
    pub ca_config_map_key_ref: ConfigMapKeyRef,
}
