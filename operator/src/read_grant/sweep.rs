//! Deletes grants that have run out: a list of them every few minutes, and no watch.

use std::time::Duration;

use belay_crds::ReadGrant;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::has_run_out;
use crate::clock::Clock;
use crate::controller::Failure;
use crate::writes::{Target, Writes};

const SWEEP_EVERY: Duration = Duration::from_mins(5);
const PAGE: u32 = 500;

/// Sweeps until `shutdown`. A failed sweep is made up for by the next.
pub async fn sweep(client: Client, writes: Writes, shutdown: CancellationToken) {
    loop {
        match sweep_once(&client, &writes).await {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "ReadGrants that ran out are deleted"),
            Err(failure) => tracing::warn!(%failure, "ReadGrants that ran out are not deleted"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
    }
}

async fn sweep_once(client: &Client, writes: &Writes) -> Result<usize, Failure> {
    let grants: Api<ReadGrant> = Api::all(client.clone());
    let (mut params, mut count) = (ListParams::default().limit(PAGE), 0);
    loop {
        let page = grants.list(&params).await.map_err(Failure::api("listing ReadGrants"))?;
        for grant in page.items.iter().filter(|grant| has_run_out(grant, Clock.now())) {
            let target = Target {
                namespace: grant.namespace().unwrap_or_default(),
                name: grant.name_any(),
                uid: grant.uid().unwrap_or_default(),
                resource_version: None,
            };
            writes.delete::<ReadGrant>(&target).await?;
            count += 1;
        }
        match page.metadata.continue_.filter(|next| !next.is_empty()) {
            Some(next) => params.continue_token = Some(next),
            None => return Ok(count),
        }
    }
}
