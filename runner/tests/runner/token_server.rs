//! A token endpoint on loopback that gives tokens to one client, and MCP and model servers that want them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Response};
use tokio::net::TcpListener;

/// One request for a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub authorization: Option<String>,
    pub form: String,
}

#[derive(Clone)]
pub struct TokenServer {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    expires_in: u64,
    prefix: Arc<str>,
}

impl TokenServer {
    /// Its tokens are `token-1`, `token-2` .., good for so many seconds.
    pub async fn start(expires_in: u64) -> Self {
        Self::giving("token-", expires_in).await
    }

    /// The same with other tokens, `{prefix}1` ..
    pub async fn giving(prefix: &str, expires_in: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server =
            Self { address: listener.local_addr().unwrap(), asked: Arc::default(), expires_in, prefix: prefix.into() };
        let router = Router::new().fallback(serve).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}/oauth/token", self.address)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(State(server): State<TokenServer>, headers: HeaderMap, form: String) -> Response<Body> {
    let authorization = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let number = {
        let mut asked = server.asked.lock().unwrap();
        asked.push(Asked { authorization, form });
        asked.len()
    };
    // Long enough for others to come meanwhile.
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let granted = serde_json::json!({
        "access_token": format!("{}{number}", server.prefix), "token_type": "bearer", "expires_in": server.expires_in,
    });
    Response::builder().header("content-type", "application/json").body(granted.to_string().into()).unwrap()
}
