//! The runner against scripted fakes of everything around it: operator, model servers, MCP servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::missing_panics_doc)]

mod answers;
mod asking;
mod bench;
mod canary;
mod chat_completions;
mod codecs;
mod credentials;
mod egress;
mod fake_mcp;
mod fake_operator;
mod fallbacks;
mod fuzz;
mod graders;
mod grpc;
mod http;
mod http_api;
mod http_graders;
mod inquiries;
mod leaks;
mod lists;
mod mcp;
mod mcp_graders;
mod messages;
mod news;
mod output;
mod plans;
mod private_ca;
mod proxied;
mod requests;
mod responses;
mod runs;
mod steps;
mod tls;
mod token_server;
mod wild;
