//! Attempts to have a call pass that nobody allowed, each refused by the API server alone, in words. What the operator
//! refuses as well is proven where the operator is tested: one layer may be missing.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod decisions;
mod drift;
mod grants;
mod identity;
mod objects;
mod readers;
mod runner_pods;
