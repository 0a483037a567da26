//! Where commands work, and how one that a person is to type next says so.

use kube::Client;

/// A connection to the API server and the namespace that commands work in.
pub struct Target {
    pub client: Client,
    pub namespace: String,
    pub place: Place,
}

/// The options that lead a command to the same namespace. None where the kubeconfig leads there by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place(String);

impl Place {
    /// `home` is the namespace that is worked in where none is named.
    pub fn new(context: Option<&str>, namespace: &str, home: &str) -> Self {
        let context = context.map(|context| format!(" --context {context}")).unwrap_or_default();
        let namespace = if namespace == home { String::new() } else { format!(" -n {namespace}") };
        Self(context + &namespace)
    }

    /// How a command of ours begins.
    pub fn belay(&self) -> String {
        format!("belay{}", self.0)
    }

    pub fn kubectl(&self) -> String {
        format!("kubectl{}", self.0)
    }
}

/// An object by its name, and where it is.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    pub name: &'a str,
    pub place: &'a Place,
}

impl Target {
    pub fn placed<'a>(&'a self, name: &'a str) -> Placed<'a> {
        Placed { name, place: &self.place }
    }
}

#[cfg(test)]
pub mod tests {
    use std::sync::LazyLock;

    use super::*;

    static TEAM: LazyLock<Place> = LazyLock::new(|| Place::new(None, "team", "default"));

    /// In a namespace that the kubeconfig does not name.
    pub fn in_team(name: &str) -> Placed<'_> {
        Placed { name, place: &TEAM }
    }

    #[test]
    fn a_command_names_what_it_has_to() {
        let belay = |context, namespace| Place::new(context, namespace, "home").belay();
        assert_eq!(belay(None, "home"), "belay");
        assert_eq!(belay(None, "team"), "belay -n team");
        assert_eq!(belay(Some("prod"), "home"), "belay --context prod");
        assert_eq!(Place::new(Some("prod"), "team", "home").kubectl(), "kubectl --context prod -n team");
    }
}
