//! OpenAI's newer wire format, without anything kept at the provider: reasoning comes encrypted and goes back byte
//! for byte, in its place.

mod request;
mod response;

use belay_protocol::plan::PlanModel;

use super::Context;
use super::codec::{Codec, Destination};
use super::exchange::HttpModel;

pub use self::response::Assembly;

/// A Model of this wire format.
pub type Responses = HttpModel<ResponsesCodec>;

/// The codec.
#[derive(Debug)]
pub enum ResponsesCodec {}

impl Codec for ResponsesCodec {
    const API: &'static str = "Responses";
    const PATH: &'static str = "/responses";
    const HEADERS: &'static [(&'static str, &'static str)] = &[];
    type Assembly = Assembly;

    fn body(context: &Context<'_>, model: &PlanModel, _to: Destination<'_>) -> Result<Vec<u8>, serde_json::Error> {
        request::body(context, model)
    }
}
