//! What became of a call: what the wire saw, put together with what rmcp made of it.

use belay_protocol::RESULT_BYTES_MAX;
use belay_protocol::elicitation::Inputs;
use belay_protocol::event::NotSentReason;
use rmcp::model::CallToolResponse;
use rmcp::service::ServiceError;

use super::questions::{questions, with_questions};
use super::{ERROR_BYTES_READ, McpServer, RESPONSE_BYTES_MAX};
use crate::redact::legible;
use crate::tools::Outcome;
use crate::tools::attachment::Attachments;
use crate::tools::result::{bounded, complete, observed_error};
use crate::tools::trouble::Trouble;
use crate::tools::wire::Departure;

/// The server wants a page to be opened first (MCP 2025-11-25, `URLElicitationRequired`).
const URL_NEEDED: i32 = -32042;

impl McpServer {
    /// Puts together what the wire saw and what rmcp made of it.
    pub(super) fn outcome(
        &mut self,
        departure: Departure,
        result: Result<CallToolResponse, ServiceError>,
        inputs: &Inputs,
    ) -> Outcome {
        let (asked, required) = (self.respondent.end(), self.wire.input_required());
        let mut attachments = Attachments::new(&self.redactor);
        let outcome = match (departure, result) {
            (Departure::NotSent { reason, message }, _) => Outcome::NotSent { reason, message: self.shown(&message) },
            // A call that never reached the wire did not even spend its permit.
            (Departure::Expired | Departure::None | Departure::Cleared { .. }, _) => Outcome::PermitExpired,
            (Departure::Troubled(trouble), _) => self.troubled(&trouble, &mut attachments),
            (Departure::Answered, Ok(CallToolResponse::Complete(result))) => {
                Outcome::Observed(complete(result, &mut attachments))
            }
            (Departure::Answered, _) if required.is_some() => {
                let required = required.as_ref().map(|result| self.required(result));
                return questions(required, inputs, &mut attachments);
            }
            (Departure::Answered, Err(ServiceError::McpError(error))) if error.code.0 == URL_NEEDED => {
                return questions(Some(self.pages(&error)), inputs, &mut attachments);
            }
            (Departure::Answered, Err(ServiceError::McpError(error))) => {
                let data = error.data.map_or_else(String::new, |data| format!(" {data}"));
                observed_error(&format!("error {}: {}{data}", error.code.0, error.message), &mut attachments)
            }
            (Departure::Answered, Ok(_) | Err(_)) => Outcome::Unknown {
                message: "the server answered with something that is no result of a call".to_owned(),
            },
            (Departure::Sent, Ok(_)) => {
                Outcome::Unknown { message: "an answer came that belongs to no response of the server".to_owned() }
            }
            (Departure::Sent, Err(error)) => Outcome::Unknown {
                message: format!("the connection ended before the answer: {}", self.shown(&error.to_string())),
            },
        };
        self.attached = attachments.into_found();
        with_questions(outcome, asked, inputs)
    }

    fn troubled(&self, trouble: &Trouble, attachments: &mut Attachments<'_>) -> Outcome {
        match trouble {
            // Gateways send these when they lost their upstream, which may have done the work.
            Trouble::Status { code: code @ (408 | 502 | 503 | 504 | 520..=527), .. } => {
                Outcome::Unknown { message: format!("the server or a gateway before it answered {code}") }
            }
            Trouble::Status { code, body } => {
                // No more of it was read: what a cut leaves of a value goes too.
                let body = self.redactor.redact_kept(&legible(body), ERROR_BYTES_READ).into_owned();
                observed_error(&format!("the server answered HTTP {code} {body}"), attachments)
            }
            Trouble::Challenged { code, challenge } => {
                let wanted = self.wanted(challenge);
                observed_error(&format!("the server answered HTTP {code}: {wanted}"), attachments)
            }
            // As of an HTTP API: no error, or a model would call again what was carried out.
            Trouble::TooLarge => Outcome::Observed(bounded(
                false,
                &format!("[the call was answered with more than {RESPONSE_BYTES_MAX} bytes, which were not read]"),
                RESULT_BYTES_MAX,
                attachments,
            )),
            Trouble::NotSent { message, .. } | Trouble::NoConnection(message) => {
                Outcome::NotSent { reason: NotSentReason::Unreachable, message: self.shown(message) }
            }
            Trouble::Broken(why) => {
                Outcome::Unknown { message: format!("the connection broke before the answer: {}", self.shown(why)) }
            }
            Trouble::Malformed(seen) => {
                Outcome::Unknown { message: format!("the answer is not MCP: {}", self.shown(seen)) }
            }
        }
    }
}
