//! The stream that a server of the older form may have beside its calls. One thing is heard on it: that the list of
//! operations changed. Answers come with the POST that asked, and requests of the server belong to a call.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::header::ACCEPT_ENCODING;
use http::{HeaderName, HeaderValue, Method};
use rmcp::transport::streamable_http_client::{SseError, StreamableHttpClient as _};
use serde::Deserialize;
use sse_stream::Sse;

use super::{Outfit, Wire};
use crate::tools::changes::pauses;

const LIST_CHANGED: &str = "notifications/tools/list_changed";
/// Longer ones are no news of that kind.
const EVENT_BYTES_MAX: usize = 64 * 1024;

/// Whether there is such a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Beside {
    /// The server has not said yet what it can do.
    #[default]
    Undecided,
    Open,
    Closed,
}

/// Whose stream it is.
pub(super) struct Session {
    pub id: Arc<str>,
    pub headers: HashMap<HeaderName, HeaderValue>,
}

impl Wire {
    /// A conversation begins, whose server has said nothing yet.
    pub fn begin(&self) {
        self.beside.send_replace(Beside::Undecided);
        self.listening.store(false, Ordering::Release);
    }

    /// Its server has said what it can do.
    pub fn set_beside(&self, beside: Beside) {
        self.beside.send_replace(beside);
    }

    /// Notes what is heard, until it is dropped.
    pub(super) async fn listen(self, session: Session) {
        let mut beside = self.beside.subscribe();
        let decided = beside.wait_for(|beside| *beside != Beside::Undecided).await;
        if decided.is_ok_and(|beside| *beside == Beside::Open) {
            self.hear(&session).await;
        }
        std::future::pending::<()>().await;
    }

    async fn hear(&self, session: &Session) {
        let mut opened = false;
        for pause in pauses() {
            match self.open_beside(session).await {
                Some(mut events) => {
                    opened = true;
                    while let Some(Ok(event)) = events.next().await {
                        if event.data.as_deref().is_some_and(is_list_changed) {
                            self.changes.note();
                        }
                    }
                }
                // There is none, or its Credential is not for GET.
                None if !opened => return,
                None => {}
            }
            // What is said until it is open again goes unheard.
            self.changes.note();
            tokio::time::sleep(pause).await;
        }
    }

    async fn open_beside(&self, session: &Session) -> Option<BoxStream<'static, Result<Sse, SseError>>> {
        let Outfit { http, url, header } = self.outfit(&Method::GET).await.ok()?;
        let mut headers = session.headers.clone();
        headers.extend(header);
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let id = Some(Arc::clone(&session.id));
        http.get_stream_with_max_sse_event_size(url, id, None, None, headers, EVENT_BYTES_MAX).await.ok()
    }
}

pub(super) fn is_list_changed(data: &str) -> bool {
    #[derive(Deserialize)]
    struct Shape<'a> {
        #[serde(borrow)]
        method: std::borrow::Cow<'a, str>,
    }
    data.contains("list_changed")
        && serde_json::from_str::<Shape<'_>>(data).is_ok_and(|shape| shape.method == LIST_CHANGED)
}
