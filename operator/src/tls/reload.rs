//! A TLS server configuration whose certificate can be changed while connections come in.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::{Material, TlsError};

/// Serves the certificate that was set last; clones share it.
#[derive(Clone, Debug)]
pub struct Reloadable {
    current: Arc<Current>,
}

#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Reloadable {
    /// Starts with this certificate.
    pub fn new(material: &Material) -> Result<Self, TlsError> {
        Ok(Self { current: Arc::new(Current(RwLock::new(Arc::new(certified(material)?)))) })
    }

    /// Serves this certificate to connections from now on.
    pub fn set(&self, material: &Material) -> Result<(), TlsError> {
        let key = Arc::new(certified(material)?);
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = key;
        Ok(())
    }

    /// What a TLS acceptor takes: TLS 1.3, HTTP/2. Both ends are ours, so nothing older is needed.
    pub fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(self.current.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn certified(material: &Material) -> Result<CertifiedKey, TlsError> {
    let unreadable = |part, e: &dyn std::fmt::Display| TlsError::Unreadable { part, message: e.to_string() };
    let chain = CertificateDer::pem_slice_iter(material.cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| unreadable("certificate", &e))?;
    let key = PrivateKeyDer::from_pem_slice(material.key_pem.as_bytes()).map_err(|e| unreadable("key", &e))?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
    Ok(CertifiedKey::new(chain, key))
}
