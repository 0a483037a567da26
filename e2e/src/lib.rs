//! What the tests on a real cluster share: kubectl as a person would type it, and a namespace of their own.
//! Needs KUBECONFIG and kubectl; `e2e/cluster-tests` provides both. No test skips without them.

pub mod bare;
pub mod chaos;
pub mod counter;
pub mod helm;
pub mod image;
pub mod kubectl;
pub mod namespace;
pub mod peer;
pub mod process;
pub mod stage;

pub use bare::BareServer;
pub use helm::Helm;
pub use kubectl::{Kubectl, Output};
pub use namespace::TempNamespace;
pub use stage::Stage;
