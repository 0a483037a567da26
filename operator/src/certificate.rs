//! The operator's own certificate in its Secret: read at start, made where it is empty, renewed in time. The one
//! Secret that the operator may touch, by name.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::pod_template::SharedSettings;
use crate::tls::{Material, Reloadable, Renewal, TlsError, trust_bundle};

/// Name of the Secret, in the operator's own namespace.
pub const SECRET: &str = "belay-operator-tls";
const CHECK_EVERY: Duration = Duration::from_hours(1);
/// Another operator may write at the same time during an upgrade; the one who loses reads what won.
const ATTEMPTS: usize = 5;

const CA_CERT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";
const PREVIOUS_CA: &str = "previous-ca.crt";

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("Secret {SECRET} in namespace {namespace}: {source}. It comes with the installation: apply it again")]
    Api {
        namespace: String,
        #[source]
        source: kube::Error,
    },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("Secret {SECRET} changed under every attempt to write it")]
    Contended,
}

/// The certificate's place.
#[derive(Clone)]
pub struct Certificate {
    client: Client,
    namespace: String,
    /// What the certificate must vouch for.
    names: Vec<String>,
}

impl Certificate {
    #[must_use]
    pub fn new(client: Client, namespace: String, names: Vec<String>) -> Self {
        Self { client, namespace, names }
    }

    /// What the Secret holds, after making what is due.
    pub async fn ensure(&self, now: Timestamp) -> Result<Material, CertificateError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let failed = |source| CertificateError::Api { namespace: self.namespace.clone(), source };
        for _ in 0..ATTEMPTS {
            let mut secret = secrets.get(SECRET).await.map_err(failed)?;
            let held = read(secret.data.as_ref());
            let renewal = held.as_ref().map_or(Renewal::Authority, |material| material.due(&self.names, now));
            let material = match (held, renewal) {
                (Some(material), Renewal::None) => return Ok(material),
                (Some(material), due @ (Renewal::Certificate | Renewal::Authority)) => {
                    material.renewed(due, &self.names, now)?
                }
                (None, _) => Material::fresh(&self.names, now)?,
            };
            secret.data = Some(write(&material));
            match secrets.replace(SECRET, &PostParams::default(), &secret).await {
                Ok(_) => {
                    tracing::info!(?renewal, "certificate made");
                    return Ok(material);
                }
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Err(CertificateError::Contended)
    }

    /// Looks every hour until `shutdown` and serves what is new.
    pub async fn keep(
        self,
        reloadable: Reloadable,
        settings: SharedSettings,
        mut held: Material,
        shutdown: CancellationToken,
    ) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(CHECK_EVERY) => {}
            }
            match self.ensure(Timestamp::now()).await {
                Ok(material) if material == held => {}
                Ok(material) => match reloadable.set(&material) {
                    Ok(()) => {
                        settings.trust(trust_bundle(&material));
                        held = material;
                    }
                    Err(error) => tracing::error!(%error, "the renewed certificate cannot be served"),
                },
                Err(error) => tracing::warn!(%error, "certificate not checked"),
            }
        }
    }
}

/// The Secret is installed without data, and someone may have emptied it: then there is nothing to read.
fn read(data: Option<&BTreeMap<String, ByteString>>) -> Option<Material> {
    let text = |key: &str| String::from_utf8(data?.get(key)?.0.clone()).ok().filter(|text| !text.is_empty());
    Some(Material {
        ca_cert_pem: text(CA_CERT)?,
        ca_key_pem: text(CA_KEY)?,
        cert_pem: text(CERT)?,
        key_pem: text(KEY)?,
        previous_ca_pem: text(PREVIOUS_CA),
    })
}

fn write(material: &Material) -> BTreeMap<String, ByteString> {
    let entries = [
        (CA_CERT, Some(&material.ca_cert_pem)),
        (CA_KEY, Some(&material.ca_key_pem)),
        (CERT, Some(&material.cert_pem)),
        (KEY, Some(&material.key_pem)),
        (PREVIOUS_CA, material.previous_ca_pem.as_ref()),
    ];
    let held = entries.into_iter().filter_map(|(key, text)| Some((key, text?)));
    held.map(|(key, text)| (key.to_owned(), ByteString(text.clone().into_bytes()))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_an_emptied_secret_reads_as_nothing() {
        let material = Material::fresh(&["a.svc".into()], Timestamp::UNIX_EPOCH).unwrap();
        for previous in [None, Some("PEM".to_owned())] {
            let material = Material { previous_ca_pem: previous, ..material.clone() };
            assert!(read(Some(&write(&material))) == Some(material));
        }
        assert!(read(None).is_none());
        let mut emptied = write(&material);
        emptied.insert(KEY.to_owned(), ByteString(Vec::new()));
        assert!(read(Some(&emptied)).is_none());
    }
}
