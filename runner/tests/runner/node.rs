//! Servers that others wrote for Node, on loopback: `make graders` brings them.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Ends with the test.
pub struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Peer {
    /// Starts `script` of the folder that `modules` names, told its port by `tell`, and waits until it listens there.
    pub async fn start(modules: &str, script: &str, tell: impl FnOnce(&mut Command, u16)) -> (Self, u16) {
        let modules = std::env::var_os(modules).expect("run this with `make graders`");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("node");
        command.arg(PathBuf::from(modules).join(script)).stdout(Stdio::null());
        tell(&mut command, port);
        let peer = Self(command.spawn().unwrap());
        let listens = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), listens).await.expect("it listens");
        (peer, port)
    }
}
