//! What a server asks people in the middle of a call. Nobody can be waited for while a connection is open, so a question
//! that was answered before gets its answer, and any other hears that nobody answers yet: people are asked once the
//! call has ended.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use belay_protocol::elicitation::{Inputs, Inquiry};
use rmcp::ClientHandler;
use rmcp::model::{
    ClientConfig, CustomRequest, CustomResult, ElicitRequestParams, ElicitResult, ElicitationAction, ErrorCode,
    ErrorData, ProgressNotificationParam,
};
use rmcp::service::{NotificationContext, RequestContext, RoleClient};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::redact::Redactor;
use crate::tools::{PROGRESS_BYTES_KEPT, Progress};

const METHOD: &str = "elicitation/create";

/// This client as its server sees it. Clones share what was asked.
#[derive(Clone)]
pub struct Respondent {
    info: ClientConfig,
    redactor: Redactor,
    call: Arc<Mutex<Questions>>,
    progress: Arc<watch::Sender<Progress>>,
}

/// What is asked in the call under way.
#[derive(Debug, Default)]
struct Questions {
    /// What people answered before.
    inputs: Inputs,
    /// The first that nobody has answered, or why people cannot be shown it.
    open: Option<Result<Inquiry, String>>,
}

impl Respondent {
    pub fn new(info: ClientConfig, redactor: Redactor) -> Self {
        Self { info, redactor, call: Arc::default(), progress: Arc::default() }
    }

    /// The newest word on how far the call under way is.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// A call begins that people have answered this much about.
    pub fn begin(&self, inputs: Inputs) {
        *self.questions() = Questions { inputs, open: None };
    }

    /// The call has ended: what was asked in it and not answered.
    pub fn end(&self) -> Option<Result<Inquiry, String>> {
        std::mem::take(&mut *self.questions()).open
    }

    fn questions(&self) -> MutexGuard<'_, Questions> {
        self.call.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn respond(&self, params: &Value) -> ElicitResult {
        let inquiry = if self.redactor.is_clean(&params.to_string()) {
            Inquiry::read(params).map_err(|unfit| unfit.to_string())
        } else {
            Err("it holds the value of a credential".to_owned())
        };
        let mut questions = self.questions();
        let answer = inquiry.as_ref().ok().and_then(|inquiry| questions.inputs.answer_to(inquiry));
        let result = match answer {
            Some(answer) => {
                let content: Option<Value> = answer.and_then(|content| serde_json::from_str(content).ok());
                let accepted = ElicitResult::new(ElicitationAction::Accept);
                return content.into_iter().fold(accepted, ElicitResult::with_content);
            }
            None if inquiry.is_ok() => ElicitResult::new(ElicitationAction::Cancel),
            None => ElicitResult::new(ElicitationAction::Decline),
        };
        questions.open.get_or_insert(inquiry);
        result
    }
}

impl ClientHandler for Respondent {
    fn get_info(&self) -> ClientConfig {
        self.info.clone()
    }

    async fn create_elicitation(
        &self,
        request: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        Ok(self.respond(&serde_json::to_value(&request).unwrap_or_default()))
    }

    async fn on_progress(&self, params: ProgressNotificationParam, _context: NotificationContext<RoleClient>) {
        let ProgressNotificationParam { progress: done, total, message, .. } = params;
        let mut message = message.unwrap_or_default();
        message.truncate(message.floor_char_boundary(PROGRESS_BYTES_KEPT));
        self.progress.send_replace(Progress { done, total, message });
    }

    /// What rmcp could not read as an elicitation: it is heard, and declined.
    async fn on_custom_request(
        &self,
        request: CustomRequest,
        _context: RequestContext<RoleClient>,
    ) -> Result<CustomResult, ErrorData> {
        if request.method != METHOD {
            return Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, request.method, None));
        }
        let result = self.respond(&request.params.unwrap_or_default());
        Ok(CustomResult::new(serde_json::to_value(result).unwrap_or_else(|_| json!({"action": "decline"}))))
    }
}
