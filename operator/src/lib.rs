//! The operator: watches what people declare, runs it, and decides what runs may do.

pub mod agent;
pub mod agent_run;
pub mod api_client;
pub mod approval;
pub mod approval_policy;
pub mod certificate;
pub mod clock;
pub mod config;
pub mod controller;
pub mod credential;
#[cfg(test)]
mod fixtures;
pub mod gate;
pub mod grant;
pub mod guard;
pub mod http;
pub mod http_api;
pub mod journal;
pub mod leader;
pub mod metrics;
pub mod model;
pub mod namespaces;
pub mod network;
pub mod operator;
pub mod peers;
#[cfg(test)]
mod played;
pub mod pod_template;
pub mod pod_view;
pub mod policy;
pub mod probe_pod;
pub mod quota;
pub mod read_grant;
pub mod readiness;
pub mod references;
pub mod rollback;
pub mod service;
#[cfg(test)]
mod simulation;
pub mod suspension;
pub mod telemetry;
pub mod tls;
pub mod tool;
pub mod tuning;
pub mod watches;
pub mod world;
pub mod writes;
