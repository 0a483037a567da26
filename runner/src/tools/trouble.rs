//! What can go wrong in one HTTP exchange with a tool's server, told apart by how far the bytes may have come.

use belay_protocol::event::FailureReason;
use rmcp::transport::streamable_http_client::StreamableHttpError;

use crate::egress;

/// What an exchange can come to besides an answer. Texts are the server's own: whoever shows them redacts and cuts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    NotSent {
        reason: FailureReason,
        message: String,
    },
    NoConnection(String),
    /// A complete answer with an error status.
    Status {
        code: u16,
        body: String,
    },
    /// 401 or 403 with the `WWW-Authenticate` header that says what is missing.
    Challenged {
        code: u16,
        challenge: String,
    },
    Broken(String),
    TooLarge,
    Malformed(String),
}

impl Trouble {
    /// Whether the server does not take the credential for what it has to be.
    #[must_use]
    pub fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Status { code: 401, .. } | Self::Challenged { code: 401, .. })
    }

    pub fn from_error(error: &StreamableHttpError<reqwest::Error>) -> Self {
        if let StreamableHttpError::Client(error) = error
            && let Some(refused) = egress::refused(error)
        {
            return Self::NotSent { reason: FailureReason::DestinationNotAllowed, message: refused.to_string() };
        }
        match error {
            StreamableHttpError::Client(error) if error.is_connect() => Self::NoConnection(egress::causes(error)),
            StreamableHttpError::Client(error) => Self::Broken(egress::causes(error)),
            StreamableHttpError::HttpStatus(status) => Self::Status { code: status.status, body: String::new() },
            StreamableHttpError::AuthRequired(error) => {
                Self::Challenged { code: 401, challenge: error.www_authenticate_header.clone() }
            }
            StreamableHttpError::InsufficientScope(error) => {
                Self::Challenged { code: 403, challenge: error.www_authenticate_header.clone() }
            }
            StreamableHttpError::SessionExpired => {
                Self::Status { code: 404, body: "the session is no longer known".to_owned() }
            }
            StreamableHttpError::ResponseBodyTooLarge { .. } => Self::TooLarge,
            StreamableHttpError::UnexpectedServerResponse(text) => {
                status_in(text).unwrap_or_else(|| Self::Malformed(text.to_string()))
            }
            StreamableHttpError::UnexpectedContentType(seen) => {
                let seen = seen.as_deref().unwrap_or("no content type");
                Self::Malformed(format!("it answered with {seen}"))
            }
            StreamableHttpError::Deserialize(error) => Self::Malformed(error.to_string()),
            // An enum that may grow: whatever else it is, nobody knows how far the request came.
            other => Self::Broken(other.to_string()),
        }
    }
}

/// rmcp has error statuses in words alone: `HTTP 400 Bad Request: body`.
fn status_in(text: &str) -> Option<Trouble> {
    let (status, body) = text.strip_prefix("HTTP ")?.split_once(": ").unwrap_or((text.get(5..)?, ""));
    let code = status.split(' ').next()?.parse().ok()?;
    Some(Trouble::Status { code, body: body.to_owned() })
}
