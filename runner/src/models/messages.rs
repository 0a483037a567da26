//! Anthropic's wire format. Every answer's blocks go back in their order, signed and redacted reasoning byte for
//! byte; cache breakpoints are placed here.

mod request;
mod response;

use belay_protocol::plan::PlanModel;

use super::Context;
use super::codec::{Codec, Destination};
use super::exchange::HttpModel;

pub use self::response::Assembly;

/// A Model of this wire format.
pub type Messages = HttpModel<MessagesCodec>;

/// The codec.
#[derive(Debug)]
pub enum MessagesCodec {}

impl Codec for MessagesCodec {
    const API: &'static str = "Messages";
    const PATH: &'static str = "/messages";
    const HEADERS: &'static [(&'static str, &'static str)] = &[("anthropic-version", "2023-06-01")];
    type Assembly = Assembly;

    fn body(context: &Context<'_>, model: &PlanModel, _to: Destination<'_>) -> Result<Vec<u8>, serde_json::Error> {
        request::body(context, model)
    }
}
