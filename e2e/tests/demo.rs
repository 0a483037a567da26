//! What `make demo-approval` and `make demo-real` show is what happens.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use belay_e2e::{Kubectl, peer};
use serde_json::{Value, json};

/// The demos of a real model share a namespace and an Agent.
static DEMO_REAL: Mutex<()> = Mutex::new(());

#[test]
fn an_agent_deletes_what_two_people_allowed_and_nothing_else() {
    let demo = Command::new("../e2e/demo-approval").arg("--installed").output().unwrap();
    let (printed, errors) = (String::from_utf8_lossy(&demo.stdout), String::from_utf8_lossy(&demo.stderr));
    assert!(demo.status.success(), "{printed}{errors}");
    // The script itself looks at what the server remembers, and how often people were asked.
    for words in [
        "ada (two-to-delete), bob (two-to-delete)",
        "needs the verb approve on approvalpolicies.decide.belay.dev two-to-delete",
        "there is an open invoice",
        "Succeeded",
    ] {
        assert!(printed.contains(words), "{words} is not in\n{printed}");
    }
}

/// What `e2e/demo-real` prints, on stdout and stderr, with these of the variables that it reads.
fn demo_real(environment: &[(&str, &str)]) -> String {
    let mut demo = Command::new("../e2e/demo-real");
    for name in ["ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL"] {
        demo.env_remove(name);
    }
    let demo = demo.arg("--installed").envs(environment.iter().copied()).output().unwrap();
    let printed = [demo.stdout, demo.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(demo.status.success(), "{printed}");
    printed
}

#[test]
fn without_a_key_the_quickstart_runs_on_a_small_real_model_and_its_trace_is_shown() {
    let _alone = DEMO_REAL.lock().unwrap_or_else(PoisonError::into_inner);
    let printed = demo_real(&[]);
    for words in ["Succeeded", "invoke_agent quickstart-real", "chat smollm2", "start a pod", "models  1 step in "] {
        assert!(printed.contains(words), "{words} is not in\n{printed}");
    }
}

/// A provider in the demo's namespace that takes one key, and what the demo leaves there of it. Taken away when dropped.
struct Provider {
    name: &'static str,
    kubectl: Kubectl,
    key: String,
}

impl Provider {
    fn start(name: &'static str) -> Self {
        Kubectl::new().run(&["apply", "--server-side", "-f", "../manifests/demo/namespace.yaml"]).unwrap();
        let kubectl = Kubectl::new().with(&["--namespace", "belay-demo"]);
        let made = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let provider = Self { name, kubectl, key: format!("sk-{name}-made-up-{made}") };
        let taken = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "taken"},
            "stringData": {"AIMOCK_API_KEYS": provider.key}});
        provider.kubectl.apply(&taken.to_string()).unwrap();
        let call = json!({"id": "call_sum", "name": "everything__get-sum", "arguments": {"a": 19, "b": 23}});
        let fixtures = json!([
            {"match": {"turnIndex": 0}, "response": {"toolCalls": [call]}},
            {"match": {"turnIndex": 1, "toolCallId": "call_sum"}, "response": {"content": "19 and 23 make 42."}},
        ]);
        peer::aimock(&provider.kubectl, &fixtures).unwrap();
        for words in
            ["set env deployment/aimock --from=secret/taken", "rollout status deployment/aimock --timeout=150s"]
        {
            provider.kubectl.run(&words.split(' ').collect::<Vec<_>>()).unwrap();
        }
        provider
    }

    /// Every object of the cluster that can be listed, but Secrets.
    fn objects() -> String {
        let all = Kubectl::new();
        let kinds = all.run(&["api-resources", "--verbs=list", "-o", "name"]).unwrap();
        let kinds: Vec<&str> = kinds.lines().filter(|kind| *kind != "secrets").collect();
        all.run(&["get", &kinds.join(","), "--all-namespaces", "--show-managed-fields", "-o", "json"]).unwrap()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        for objects in
            ["deployment/aimock service/aimock configmap/fixtures secret/taken", &format!("secret/{}", self.name)]
        {
            let words = ["delete", "--ignore-not-found", "--cascade=foreground"].into_iter().chain(objects.split(' '));
            let _ = self.kubectl.run(&words.collect::<Vec<_>>());
        }
    }
}

/// The key is made up, the provider is aimock, and everything else is as with a real one.
fn the_key_of(name: &'static str, variables: [&str; 2], base_url: &str, model: &str) {
    let _alone = DEMO_REAL.lock().unwrap_or_else(PoisonError::into_inner);
    let provider = Provider::start(name);
    let printed = demo_real(&[(variables[0], &provider.key), (variables[1], base_url)]);
    let chat = format!("chat {model}");
    for words in ["invoke_agent quickstart-real", &chat, "execute_tool everything/get-sum", "models  2 steps in "] {
        assert!(printed.contains(words), "{words} is not in\n{printed}");
    }
    let (_, run) = printed.split_once("belay -n belay-demo trace ").unwrap();
    let run = provider.kubectl.get("agentrun", run.split_whitespace().next().unwrap()).unwrap();
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    assert_eq!(run["status"]["output"], "19 and 23 make 42.", "{run:#}");

    let spec = |kind: &str, name: &str| -> Value { provider.kubectl.get(kind, name).unwrap()["spec"].clone() };
    assert_eq!(spec("model", "writer")["credentialRef"]["name"], name);
    let credential = spec("credential", name);
    assert_eq!(credential["secretKeyRef"], json!({"name": name, "key": "key"}));
    assert_eq!(credential["hosts"], json!(["aimock"]));
    let secret = provider.kubectl.get("secret", name).unwrap();
    let encoded = STANDARD.encode(&provider.key);
    assert_eq!(secret["data"], json!({"key": encoded}));
    assert_eq!(secret.to_string().matches(&encoded).count(), 1, "{:#}", secret["metadata"]);
    let objects = Provider::objects();
    assert!(objects.contains(base_url), "what is no secret is found there");
    for (place, text) in [("what was printed", &printed), ("an object", &objects)] {
        assert!(!text.contains(&provider.key) && !text.contains(&encoded), "the key is in {place}");
    }
}

#[test]
fn the_key_of_anthropic_goes_into_a_secret_and_to_the_provider_alone() {
    let variables = ["ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"];
    the_key_of("anthropic", variables, "http://aimock:4010", "claude-sonnet-5");
}

#[test]
fn the_key_of_openai_goes_into_a_secret_and_to_the_provider_alone() {
    the_key_of("openai", ["OPENAI_API_KEY", "OPENAI_BASE_URL"], "http://aimock:4010/v1", "gpt-5.2-mini");
}

#[test]
fn a_base_url_that_is_none_is_refused_before_anything_is_made() {
    for url in ["aimock:4010", "http://aimock:4010/v1?key=1", "http://user@aimock", "http://a b", "http://"] {
        let mut demo = Command::new("../e2e/demo-real");
        demo.arg("--installed").env_remove("ANTHROPIC_API_KEY");
        let demo = demo.env("OPENAI_API_KEY", "sk-made-up").env("OPENAI_BASE_URL", url).output().unwrap();
        let errors = String::from_utf8_lossy(&demo.stderr);
        assert!(!demo.status.success() && errors.starts_with("OPENAI_BASE_URL: "), "{url}: {errors}");
        assert!(!errors.contains("sk-made-up"), "{errors}");
    }
}
