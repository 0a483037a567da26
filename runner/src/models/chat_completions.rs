//! The wire format that most servers speak. It has no place for reasoning, and servers made some: what one of them says
//! there goes back to it under the same names (docs/decisions/0020).

mod request;
mod response;
mod thought;

use belay_protocol::plan::PlanModel;

use super::Context;
use super::codec::Codec;
use super::exchange::HttpModel;

pub use self::response::Assembly;

/// A Model of this wire format.
pub type ChatCompletions = HttpModel<Chat>;

/// The codec.
#[derive(Debug)]
pub enum Chat {}

impl Codec for Chat {
    const API: &'static str = "Chat Completions";
    const PATH: &'static str = "/chat/completions";
    const HEADERS: &'static [(&'static str, &'static str)] = &[];
    type Assembly = Assembly;

    fn body(context: &Context<'_>, model: &PlanModel, url: &str) -> Result<Vec<u8>, serde_json::Error> {
        request::body(context, model, url)
    }
}
