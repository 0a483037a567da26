//! The wire format that most servers speak. It has no place for reasoning, and servers made some: what one of them says
//! there goes back to it under the same names (docs/decisions/0020).

mod request;
mod response;
mod thought;

use belay_protocol::plan::PlanModel;

use super::Context;
use super::codec::{Codec, Destination};
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

    fn body(context: &Context<'_>, model: &PlanModel, to: Destination<'_>) -> Result<Vec<u8>, serde_json::Error> {
        request::body(context, model, to)
    }

    fn is_misspelled(model: &PlanModel, said: &str) -> bool {
        model.max_output_tokens.is_some() && request::is_about_spelling(said)
    }
}
