//! How a coordinator reaches the API server.

use anyhow::{Context as _, bail};
use kube::Client;

use super::{connect::configure, lease::Lease, node_balances::NodeBalances};
use crate::kubernetes::{Access, Ask};

/// The API server as a coordinator uses it: the objects of all nodes, and the lease called `lease` in
/// `namespace`, which `identity` wants to hold.
///
/// # Errors
/// Why it cannot be asked. That it does not answer is none.
pub async fn coordination(
    access: &Access,
    namespace: &str,
    lease: &str,
    identity: &str,
) -> anyhow::Result<(NodeBalances, Lease)> {
    // It is on no node in particular.
    let access = Access {
        ask: Ask::On,
        node: Some(identity.to_owned()),
        ..access.clone()
    };
    let Some((config, _)) = configure(&access).await? else {
        bail!("there is no API server to ask");
    };
    let client = Client::try_from(config).context("preparing to ask the API server")?;
    Ok((
        NodeBalances::new(client.clone()),
        Lease::new(client, namespace, lease, identity),
    ))
}
