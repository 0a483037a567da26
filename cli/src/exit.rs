//! Errors of the CLI in words, and the exit codes that scripts rely on.

use std::process::ExitCode;

use belay_crds::Phase;

use crate::approvals::Refused;

#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error("no usable kubeconfig: {0}. Set KUBECONFIG or --context")]
    Kubeconfig(String),
    #[error("{doing}: {}", words(source))]
    Api {
        doing: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("{kind} {name} is not in namespace {namespace}")]
    NotFound { kind: &'static str, name: String, namespace: String },
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("nothing was decided")]
    Declined,
    #[error("{0}")]
    Usage(String),
}

/// Failed runs and failed commands.
pub const FAILED: u8 = 1;
const USAGE: u8 = 2;
const CANCELLED: u8 = 3;
/// `--timeout` passed before the run ended; the run goes on.
pub const TIMED_OUT: u8 = 4;

impl CliError {
    pub fn kubeconfig(error: impl std::fmt::Display) -> Self {
        Self::Kubeconfig(error.to_string())
    }

    pub fn api(doing: impl Into<String>, source: kube::Error) -> Self {
        Self::Api { doing: doing.into(), source: Box::new(source) }
    }

    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(USAGE),
            Self::Declined => ExitCode::from(CANCELLED),
            Self::Kubeconfig(_) | Self::Api { .. } | Self::NotFound { .. } | Self::Failed(_) | Self::Refused(_) => {
                ExitCode::from(FAILED)
            }
        }
    }
}

/// The API server's own message, without the structure around it.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The exit code that tells a script how the run stands.
pub fn of_phase(phase: Phase) -> ExitCode {
    match phase {
        Phase::Succeeded => ExitCode::SUCCESS,
        Phase::Failed => ExitCode::from(FAILED),
        Phase::Cancelled => ExitCode::from(CANCELLED),
        Phase::Pending | Phase::Running | Phase::Waiting => ExitCode::from(TIMED_OUT),
    }
}
