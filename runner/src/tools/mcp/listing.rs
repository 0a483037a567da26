//! Why a server could not be listed, in words that name the Tool, its URL and what to do.

use belay_protocol::event::FailureReason;

use reqwest::Url;

use super::{McpServer, RESPONSE_BYTES_MAX};
use crate::tools::ListError;
use crate::tools::challenge::Challenge;
use crate::tools::trouble::Trouble;
use crate::tools::wire::Endpoint;

/// How `serde_json` says that a text has more than 127 levels. Nothing but a schema of a list has so many.
const TOO_DEEP: &str = "recursion limit exceeded";

impl McpServer {
    pub(super) fn error(&self, reason: FailureReason, what: &str) -> ListError {
        let Endpoint { tool, url, .. } = self.wire.endpoint();
        ListError { reason, message: format!("Tool {tool}: the MCP server at {url} {what}") }
    }

    pub(super) fn silent(&self) -> ListError {
        let seconds = self.listing_timeout.as_secs();
        self.error(
            FailureReason::TimedOut,
            &format!(
                "did not list its operations within {seconds} s: is it running, and is spec.mcp.url its MCP endpoint?"
            ),
        )
    }

    /// Says what went wrong: by what the wire saw, else in rmcp's words.
    pub(super) fn list_error(&self, words: &str) -> ListError {
        let trouble = self.wire.trouble();
        let is_too_deep = |words: &str| words.contains(TOO_DEEP);
        if trouble
            .as_ref()
            .map_or(is_too_deep(words), |seen| matches!(seen, Trouble::Malformed(why) if is_too_deep(why)))
        {
            let what = "lists an operation whose inputSchema is nested too deep to be read (127 levels): flatten it";
            return self.error(FailureReason::Malformed, what);
        }
        let Some(trouble) = trouble else {
            let shown = self.shown(words);
            return self.error(FailureReason::Malformed, &format!("does not speak MCP ({shown}): check spec.mcp.url"));
        };
        match trouble {
            Trouble::NotSent { reason, message } => {
                self.error(reason, &format!("was not asked: {message}"))
            }
            Trouble::NoConnection(why) => self.error(
                FailureReason::Unreachable,
                &format!("cannot be reached ({}): check spec.mcp.url, that the server runs and that a NetworkPolicy lets this pod reach it", self.shown(&why)),
            ),
            Trouble::Status { code, body } => {
                let (reason, advice) = self.advice(code);
                let body = self.shown(&body);
                let said = if body.is_empty() { String::new() } else { format!(". The server says: {body}") };
                self.error(reason, &format!("answered {code}: {advice}{said}"))
            }
            Trouble::Challenged { code, challenge } => {
                let wanted = self.wanted(&challenge);
                self.error(FailureReason::Unauthorized, &format!("answered {code}: {wanted}"))
            }
            Trouble::Broken(why) => self.error(
                FailureReason::Truncated,
                &format!("broke off ({}): see the server's own logs", self.shown(&why)),
            ),
            Trouble::TooLarge => self.error(
                FailureReason::TooLarge,
                &format!("answered with more than {RESPONSE_BYTES_MAX} bytes"),
            ),
            Trouble::Malformed(seen) => self.error(
                FailureReason::Malformed,
                &format!("does not speak MCP ({}): check spec.mcp.url", self.shown(&seen)),
            ),
        }
    }

    /// What a server that asks for authorization wants, and where that is put.
    pub(super) fn wanted(&self, challenge: &str) -> String {
        let Endpoint { url, credential, .. } = self.wire.endpoint();
        let host = Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
        let wanted = Challenge::read(challenge).in_words(&|said| self.shown(said));
        match credential {
            None => format!(
                "it asks for authorization{wanted}. Make a Credential for {host} (spec.inject.oauth2ClientCredentials with \
                 tokenURL and clientID of its authorization server, or bearer), and name it in spec.mcp.credentialRef"
            ),
            Some(credential) => format!(
                "it refuses Credential {} (Secret {}, key {}){wanted}. Check the key, and with oauth2ClientCredentials its \
                 scopes and resource",
                credential.name, credential.secret_name, credential.secret_key
            ),
        }
    }

    fn advice(&self, code: u16) -> (FailureReason, String) {
        match code {
            401 | 403 => {
                let advice = self.wire.endpoint().credential.as_ref().map_or_else(
                    || "set spec.mcp.credentialRef".to_owned(),
                    |c| format!("check Credential {} (Secret {}, key {})", c.name, c.secret_name, c.secret_key),
                );
                (FailureReason::Unauthorized, advice)
            }
            429 => (FailureReason::RateLimited, "the server limits requests: try again later".to_owned()),
            300..=399 => {
                (FailureReason::BadRequest, "redirects are not followed: put the final URL in spec.mcp.url".to_owned())
            }
            500.. => (FailureReason::ServerError, "see the server's own logs".to_owned()),
            _ => (FailureReason::BadRequest, "is spec.mcp.url the server's MCP endpoint?".to_owned()),
        }
    }
}
