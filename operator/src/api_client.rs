//! The way to the API server, on which no request waits for ever: one that is never answered would hold up its
//! object for good, since an object is looked at by one pass at a time.

use std::time::Duration;

use kube::Client;
use kube::client::ClientBuilder;
use tower::timeout::TimeoutLayer;

/// A client whose requests fail if no answer has begun after `answer_within`. A watch's answer begins at once and
/// then goes on for as long as it likes: the watcher has a time-out of its own.
///
/// # Errors
/// The access is of no use: a certificate that cannot be read, and the like.
pub fn api_client(access: kube::Config, answer_within: Duration) -> kube::Result<Client> {
    Ok(ClientBuilder::try_from(access)?.with_layer(&TimeoutLayer::new(answer_within)).build())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::Pod;
    use kube::Api;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_request_that_is_never_answered_fails() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let client = api_client(kube::Config::new(url.parse().unwrap()), Duration::from_millis(20)).unwrap();
        let pods: Api<Pod> = Api::namespaced(client, "team");
        assert!(matches!(pods.get("p").await, Err(kube::Error::Service(_))));
    }
}
