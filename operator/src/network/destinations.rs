//! The URLs that a run over some Models and Tools would request, and which of them it may not. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use belay_crds::{Credential, Model, Tool};
use belay_protocol::network::{AllowedHosts, Host};
use kube::ResourceExt;

use super::policy::{Sighting, external_name};
use crate::agent_run::resolve::base_url;

/// A URL, and the object and field that name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub subject: String,
    pub url: String,
}

/// Everything that a run over these would request.
#[must_use]
pub fn named<'a>(
    models: impl IntoIterator<Item = &'a Arc<Model>>,
    tools: impl IntoIterator<Item = &'a Arc<Tool>>,
    credentials: impl IntoIterator<Item = &'a Arc<Credential>>,
) -> Vec<Named> {
    let of_model = |model: &Arc<Model>| {
        let subject = format!("Model {}: spec.baseURL", model.name_any());
        base_url(model).map(|url| Named { subject, url })
    };
    let models = models.into_iter().filter_map(of_model);
    let tools = tools.into_iter().filter_map(|tool| of_tool(tool));
    models.chain(tools).chain(credentials.into_iter().filter_map(|credential| of_credential(credential))).collect()
}

/// What a probe of the Tool would request, and the token endpoint of its Credential.
#[must_use]
pub fn of_probe(tool: &Tool, credential: Option<&Credential>) -> Vec<Named> {
    of_tool(tool).into_iter().chain(credential.and_then(of_credential)).collect()
}

/// Where the Credential is exchanged for tokens.
fn of_credential(credential: &Credential) -> Option<Named> {
    let client = credential.spec.inject.oauth2_client_credentials.as_ref()?;
    let subject = format!("Credential {}: spec.inject.oauth2ClientCredentials.tokenURL", credential.name_any());
    Some(Named { subject, url: client.token_url.clone() })
}

/// None where an Agent carries out its calls.
fn of_tool(tool: &Tool) -> Option<Named> {
    let field = match (&tool.spec.mcp, &tool.spec.http) {
        (Some(_), _) => "spec.mcp.url",
        (None, Some(_)) => "spec.http.baseURL",
        (None, None) => return None,
    };
    Some(Named { subject: format!("Tool {}: {field}", tool.name_any()), url: tool.spec.url().to_owned() })
}

/// The first of these that what lies in `namespace` may not request, in words that name object and field.
#[must_use]
pub fn refusal(named: &[Named], namespace: &str, allowed: &AllowedHosts) -> Option<String> {
    named.iter().find_map(|Named { subject, url }| {
        allowed.route(url, namespace).err().map(|why| format!("{subject} leads where no run may go: {why}"))
    })
}

/// The first of these that names a Service of type `ExternalName`, in words: no NetworkPolicy can open a way to one.
#[must_use]
pub fn external(
    named: &[Named],
    namespace: &str,
    allowed: &AllowedHosts,
    service: impl Fn(&str, &str) -> Sighting,
) -> Option<String> {
    named.iter().find_map(|Named { subject, url }| {
        let Host::Service { name, namespace } = allowed.route(url, namespace).ok()?.destination.host else {
            return None;
        };
        let Sighting::Known(service) = service(&namespace, &name) else { return None };
        let host = belay_crds::visible(external_name(&service)?);
        Some(format!(
            "{subject} leads where no run may go: Service {name} of namespace {namespace} is an ExternalName, which stands \
             for no pods that a NetworkPolicy could let runs out to: name {host} itself"
        ))
    })
}

/// What of the installation's list these need.
#[must_use]
pub fn private_hosts(named: &[Named], namespace: &str, allowed: &AllowedHosts) -> Vec<String> {
    let needed: BTreeSet<String> = named.iter().filter_map(|named| allowed.needed(&named.url, namespace)).collect();
    needed.into_iter().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::Service;

    use super::*;
    use crate::fixtures::{NAMESPACE, credential, model, tool};

    fn at(url: &str) -> Vec<Named> {
        let mut writer = model("writer", None);
        writer.spec.base_url = Some(url.to_owned());
        named(&[Arc::new(writer)], &[Arc::new(tool("github", &[]))], &[Arc::new(credential("key"))])
    }

    fn exchanged_at(url: &str) -> Credential {
        let mut exchanged = credential("key");
        let client = serde_json::json!({"oauth2ClientCredentials": {"tokenURL": url, "clientID": "belay"}});
        exchanged.spec.inject = serde_json::from_value(client).unwrap();
        exchanged
    }

    #[test]
    fn a_token_endpoint_is_requested_too_and_may_not_lie_just_anywhere() {
        let allowed = AllowedHosts::default();
        let of = |url: &str| of_probe(&tool("github", &[]), Some(&exchanged_at(url)));
        assert_eq!(of("https://login.example/token").len(), 2);
        assert_eq!(refusal(&of("https://login.example/token"), NAMESPACE, &allowed), None);
        let words = refusal(&of("http://login.other.svc/token"), NAMESPACE, &allowed).unwrap();
        let begin = "Credential key: spec.inject.oauth2ClientCredentials.tokenURL leads where no run may go: ";
        assert!(words.starts_with(begin), "{words}");
        let run = named(&[], &[], &[Arc::new(exchanged_at("http://login.other.svc/token"))]);
        assert!(refusal(&run, NAMESPACE, &allowed).is_some());
    }

    #[test]
    fn a_service_that_stands_for_a_host_elsewhere_is_no_destination() {
        let spec = |spec| serde_json::from_value(serde_json::json!({"metadata": {}, "spec": spec})).unwrap();
        let elsewhere: Arc<Service> =
            Arc::new(spec(serde_json::json!({"type": "ExternalName", "externalName": "llm.example.com"})));
        let by_hand: Arc<Service> = Arc::new(spec(serde_json::json!({"clusterIP": "10.96.0.2"})));
        let service = |namespace: &str, name: &str| match (namespace, name) {
            (NAMESPACE, "elsewhere") => Sighting::Known(elsewhere.clone()),
            (NAMESPACE, "by-hand") => Sighting::Known(by_hand.clone()),
            _ => Sighting::Missing,
        };
        let said = |url: &str| external(&at(url), NAMESPACE, &AllowedHosts::default(), service);
        let words = "Model writer: spec.baseURL leads where no run may go: Service elsewhere of namespace triage is an \
                     ExternalName, which stands for no pods that a NetworkPolicy could let runs out to: name \
                     llm.example.com itself";
        for url in
            ["http://elsewhere/v1", "http://elsewhere.triage/v1", "https://elsewhere.triage.svc.cluster.local/v1"]
        {
            assert_eq!(said(url).as_deref(), Some(words), "{url}");
        }
        for url in ["http://by-hand/v1", "http://not-there/v1", "https://elsewhere.example.com/v1"] {
            assert_eq!(said(url), None, "{url}");
        }
    }

    #[test]
    fn a_run_requests_its_models_and_its_tools_and_providers_have_urls_of_their_own() {
        let all = named(&[Arc::new(model("writer", None))], &[Arc::new(tool("github", &[]))], &[]);
        let all: Vec<_> = all.iter().map(|named| (named.subject.as_str(), named.url.as_str())).collect();
        let expected = [
            ("Model writer: spec.baseURL", "https://api.openai.com/v1"),
            ("Tool github: spec.mcp.url", "http://github:3001/mcp"),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn services_of_other_namespaces_and_private_addresses_need_the_installations_list() {
        let allowed: AllowedHosts =
            ["llm.models.svc", "10.1.2.3"].map(|host| host.parse().unwrap()).into_iter().collect();
        for url in ["http://llm.models.svc/v1", "http://llm.models/v1", "http://10.1.2.3/v1"] {
            assert_eq!(refusal(&at(url), NAMESPACE, &allowed), None, "{url}");
            assert_eq!(private_hosts(&at(url), NAMESPACE, &allowed).len(), 1, "{url}");
        }
        for url in ["http://llm/v1", "http://llm.triage.svc/v1", "https://api.example.com/v1"] {
            assert_eq!(refusal(&at(url), NAMESPACE, &allowed), None, "{url}");
            assert_eq!(private_hosts(&at(url), NAMESPACE, &allowed), Vec::<String>::new(), "{url}");
        }
        for url in ["http://other.models.svc/v1", "http://10.1.2.4/v1", "http://127.0.0.1/v1", "http://0x7f.1/v1"] {
            let words = refusal(&at(url), NAMESPACE, &allowed).unwrap();
            assert!(words.starts_with("Model writer: spec.baseURL leads where no run may go: "), "{words}");
        }
    }
}
