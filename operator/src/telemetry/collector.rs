//! Where spans go: a collector, how it is reached, and what the installation sends along.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, Url};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const HEADERS_FILE_BYTES: usize = 64 * 1024;

/// Where spans go, as the installation says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    /// `/v1/traces` is appended.
    pub endpoint: Url,
    /// Lines `name: value`, read at every request, so that keys can be exchanged.
    pub headers_file: Option<PathBuf>,
    /// Certificates in PEM that are trusted instead of the usual ones.
    pub ca_file: Option<PathBuf>,
    /// Attributes of the resource, beside those that the operator knows.
    pub resource: Vec<(String, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    #[error("BELAY_OTLP_CA_FILE {}: {source}", path.display())]
    CaFile { path: PathBuf, source: std::io::Error },
    #[error("BELAY_OTLP_CA_FILE {}: it holds no certificate in PEM", path.display())]
    NoCertificate { path: PathBuf },
    #[error("no HTTP client for BELAY_OTLP_ENDPOINT: {0}")]
    Client(#[source] reqwest::Error),
}

/// The file of headers cannot be read, or holds something else.
#[derive(Debug, thiserror::Error)]
#[error("BELAY_OTLP_HEADERS_FILE {}: {message}", path.display())]
pub struct HeadersError {
    path: PathBuf,
    message: String,
}

impl Collector {
    pub(super) fn client(&self) -> Result<Client, CollectorError> {
        let build = || {
            Client::builder()
                .redirect(reqwest::redirect::Policy::none()) // a header of the installation goes nowhere else
                .retry(reqwest::retry::never())
                .referer(false)
                .user_agent(concat!("belay-operator/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(REQUEST_TIMEOUT)
        };
        let client = match &self.ca_file {
            Some(path) => {
                let pem =
                    std::fs::read(path).map_err(|source| CollectorError::CaFile { path: path.clone(), source })?;
                let certificates = Certificate::from_pem_bundle(&pem).unwrap_or_default();
                if certificates.is_empty() {
                    return Err(CollectorError::NoCertificate { path: path.clone() });
                }
                build().tls_certs_only(certificates).build()
            }
            // In plain text nobody is verified: there need not be a CA bundle.
            None if self.endpoint.scheme() == "http" => build().tls_certs_only([]).build(),
            None => build().build(),
        };
        client.map_err(CollectorError::Client)
    }

    /// What is in the file now.
    pub(super) async fn headers(&self) -> Result<HeaderMap, HeadersError> {
        let Some(path) = &self.headers_file else { return Ok(HeaderMap::new()) };
        let failed = |message: String| HeadersError { path: path.clone(), message };
        let text = tokio::fs::read_to_string(path).await.map_err(|error| failed(error.to_string()))?;
        headers(&text).map_err(failed)
    }
}

/// A line a header. What is wrong is told by its line, never by its value.
fn headers(text: &str) -> Result<HeaderMap, String> {
    if text.len() > HEADERS_FILE_BYTES {
        return Err(format!("more than {HEADERS_FILE_BYTES} bytes"));
    }
    let mut headers = HeaderMap::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = || format!("line {number} is no `name: value` of a header");
        let (name, value) = line.split_once(':').ok_or_else(wrong)?;
        let name: HeaderName = name.trim().parse().map_err(|_| wrong())?;
        let mut value: HeaderValue = value.trim().parse().map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_header_that_is_wrong_is_told_by_its_line_and_not_by_its_value() {
        let read = headers("authorization: Basic a2V5Og==\r\n\nx-a:1\nx-a: 2\n").unwrap();
        assert_eq!(read.get("authorization").unwrap(), "Basic a2V5Og==");
        assert_eq!(read.get_all("x-a").iter().count(), 2);
        assert!(!format!("{read:?}").contains("a2V5"), "{read:?}");
        for bad in ["a: b\nsecret", "a: b\nbad name: secret", "a: b\nx: secret\u{1}"] {
            assert_eq!(headers(bad).unwrap_err(), "line 2 is no `name: value` of a header", "{bad}");
        }
    }
}
