//! What operator, runner and CLI agree on: the gRPC contract, journal events and the fold that turns them
//! into a run's state, the frozen plan, and canonical digests. Pure: knows no network, clock or Kubernetes.

pub mod call;
pub mod chain;
pub mod cost;
pub mod digest;
pub mod elicitation;
pub mod event;
pub mod export;
pub mod fold;
pub mod grant;
pub mod guard;
pub mod judgement;
pub mod network;
pub mod output;
pub mod plan;
pub mod probe;
pub mod reading;
pub mod subagent;
pub mod trace;
pub mod transcript;

/// Messages and services generated from `proto/belay/v1/run.proto`.
#[allow(clippy::pedantic, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // generated
pub mod wire {
    tonic::include_proto!("belay.v1");
}

pub use digest::Digest;
pub use event::{Event, Record};
pub use fold::RunState;
pub use plan::Plan;

/// Version of the contract that a Hello carries.
pub const PROTOCOL_VERSION: u32 = 1;
/// Audience of the projected token by which a runner proves itself.
pub const TOKEN_AUDIENCE: &str = "belay-operator";
/// Metadata of a Hello that carries the ticket of an earlier Welcome.
pub const TICKET_METADATA: &str = "belay-ticket-bin";
/// The most that one gRPC message may hold.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most that the events of one batch may hold together.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// The most events in one batch: a response with its proposals fits with room to spare.
pub const BATCH_EVENTS_MAX: usize = 256;
/// The most of one tool result that reaches journal and model; where it is cut, the whole is an artifact.
pub const RESULT_BYTES_MAX: usize = 256 * 1024;
/// The most bytes of one artifact, of all that one run keeps, and the most that one result names.
pub const ARTIFACT_BYTES_MAX: usize = 8 * 1024 * 1024;
pub const RUN_ARTIFACT_BYTES_MAX: u64 = 64 * 1024 * 1024;
pub const ARTIFACTS_PER_RESULT_MAX: usize = 16;
/// The most tool calls of one model response; the rest go back to the model as errors.
pub const CALLS_PER_RESPONSE_MAX: usize = 64;
/// How often a listing of one tool may be reported in one epoch. A runner reports one, and each that differs in what the
/// run uses; one that goes on fills the journal.
pub const LISTINGS_PER_EPOCH_MAX: u32 = 8;
/// The most of one run that the operator can tell a runner which takes it up (`Welcome.records`), in bytes.
pub const WELCOME_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How often one step asks the model, pods that were lost meanwhile included. A runner gives up long before.
pub const MODEL_ATTEMPTS_MAX: u32 = 64;
/// How often in a row a last answer may not fit the Agent's `outputSchema`.
pub const MISFITS_MAX: u32 = 3;
/// How many grants one run may hold, those that are used up included.
pub const GRANTS_MAX: usize = 64;
/// How often a call that may be sent again is sent without an answer.
pub const CALL_ATTEMPTS_MAX: u32 = 3;
/// How long a permit is valid, counted from when the runner sent the proposal (protocol section 4).
pub const PERMIT_VALID_MILLISECONDS: u32 = 10_000;
/// Where the kubelet mounts a run's credentials: `CREDENTIALS_DIR/<credential name>/value`.
pub const CREDENTIALS_DIR: &str = "/var/run/belay/credentials";
/// Where the kubelet mounts the OpenAPI documents of a run's tools: `DOCUMENTS_DIR/<tool name>/document`.
pub const DOCUMENTS_DIR: &str = "/var/run/belay/documents";
/// Where the kubelet mounts certificates of authorities: `AUTHORITIES_DIR/<ConfigMap>/<key>`.
pub const AUTHORITIES_DIR: &str = "/var/run/belay/authorities";
/// The most bytes of certificates that one destination is verified by: a public bundle fits twice.
pub const CA_BUNDLE_BYTES_MAX: usize = 512 * 1024;
/// Where the kubelet mounts the projected token: `TOKEN_FILE`.
pub const TOKEN_FILE: &str = "/var/run/belay/token/token";
/// The most bytes that a credential may hold.
pub const CREDENTIAL_BYTES_MAX: usize = 64 * 1024;
