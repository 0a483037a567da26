//! The runner against scripted fakes of everything around it: operator, model servers, MCP servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::missing_panics_doc)]

mod chat_completions;
mod fake_mcp;
mod fake_operator;
mod grpc;
mod http;
mod mcp;
mod plans;
mod runs;
