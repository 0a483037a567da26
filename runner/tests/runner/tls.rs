//! Servers that speak TLS on loopback: an authority of the test's own, and what takes its certificates off before one of the
//! plain servers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

static MADE: AtomicU32 = AtomicU32::new(0);

/// Somebody who vouches for servers.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Whoever bears another's name is taken for that other, with a wrong signature.
        params
            .distinguished_name
            .push(DnType::CommonName, format!("authority {}", MADE.fetch_add(1, Ordering::Relaxed)));
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// By which whoever holds it vouches as this one does.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// What a server of that name proves itself by.
    pub fn vouch_for(&self, name: &str) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A port at which a plain server is reached over TLS.
#[derive(Clone)]
pub struct Front {
    pub address: SocketAddr,
    identity: Arc<Mutex<TlsAcceptor>>,
}

impl Front {
    pub async fn start(identity: TlsAcceptor, behind: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let front = Self { address: listener.local_addr().unwrap(), identity: Arc::new(Mutex::new(identity)) };
        let shown = Arc::clone(&front.identity);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let identity = shown.lock().unwrap().clone();
                tokio::spawn(async move {
                    // Whoever does not trust the server hangs up.
                    let Ok(mut stream) = identity.accept(stream).await else { return };
                    let mut plain = TcpStream::connect(behind).await.unwrap();
                    let _ = copy_bidirectional(&mut stream, &mut plain).await;
                });
            }
        });
        front
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// From now on the server proves itself otherwise.
    pub fn show(&self, identity: TlsAcceptor) {
        *self.identity.lock().unwrap() = identity;
    }
}
