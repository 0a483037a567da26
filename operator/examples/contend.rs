//! Contends for the Lease and does nothing with it: what tests kill and pause. Prints `leading UID TRANSITIONS
//! WITNESS` and `lost: WHY`; ends with SIGTERM, giving the Lease back.
//!
//! ```text
//! contend NAMESPACE IDENTITY [JOURNAL COMMITS]
//! ```

use anyhow::Context as _;
use belay_operator::leader::lead;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a rustls provider is installed already"))?;
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next();
    let (namespace, identity) = (next().context("no namespace")?, next().context("no identity")?);
    let witness = next().zip(next().map(|commits| commits.parse::<u64>()).transpose()?);
    let mut terminated = signal(SignalKind::terminate())?;
    let shutdown = CancellationToken::new();
    let asked = shutdown.clone();
    tokio::spawn(async move {
        terminated.recv().await;
        asked.cancel();
    });
    let client = kube::Client::try_default().await?;
    let Some(leadership) = lead(client, &namespace, identity, &shutdown).await else { return Ok(()) };
    let previous =
        leadership.previous.as_ref().map_or("-".to_owned(), |seen| format!("{}/{}", seen.journal, seen.commits));
    println!("leading {} {} {previous}", leadership.token.lease_uid, leadership.token.transitions);
    leadership.bear_witness(move || witness.clone());
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = leadership.lost.cancelled() => {}
    }
    if let Err(loss) = leadership.resign().await {
        println!("lost: {loss}");
        anyhow::bail!(loss);
    }
    println!("released");
    Ok(())
}
