//! What the tests on a real cluster share: kubectl as a person would type it, and a namespace of their own.
//! Needs KUBECONFIG and kubectl; `e2e/cluster-tests` provides both. No test skips without them.

pub mod bare;
pub mod helm;
