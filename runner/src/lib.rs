//! The loop in the pod: asks the model, proposes calls, sends what was permitted, reports what came back.
//! Knows the operator through one gRPC stream and nothing of Kubernetes.

pub mod agent_loop;
pub mod config;
pub mod credential;
pub mod egress;
pub mod log;
pub mod models;
pub mod output;
pub mod passage;
mod percent;
pub mod permit;
pub mod probe;
pub mod process;
pub mod redact;
mod retry_after;
pub mod run;
pub mod session;
pub mod tools;
