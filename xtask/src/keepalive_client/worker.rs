//! One connection of the keep-alive client: request, read the whole response, think, repeat.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Uri, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

use super::Tally;

const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) type Http = Client<HttpConnector, Empty<Bytes>>;

/// A worker's think time, from `shortest` to twice that, in milliseconds: pseudo-random, and the same
/// in every run.
fn think_time(worker: usize, shortest: u64, turn: u64) -> Duration {
    let random = mix(mix(worker as u64) ^ turn) % (shortest + 1);
    Duration::from_millis(shortest + random)
}

/// The finalizer of splitmix64: neighbouring numbers give unrelated results.
pub(crate) fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Sends requests forever.
pub(super) async fn run(index: usize, url: Uri, think: u64, tally: Arc<Tally>) {
    let http = client();
    for turn in 0.. {
        tokio::time::sleep(think_time(index, think, turn)).await;
        let answer = tokio::time::timeout(PATIENCE, ask(&http, url.clone())).await;
        match answer.context("no response in 10 s").flatten() {
            Ok(pod) => tally.answered(index, &pod),
            Err(error) => tally.failed(&error),
        }
    }
}

/// A client with a pool of one connection. Its retry of requests that met a closed connection is
/// off, as it would hide the cost of a move.
pub(crate) fn client() -> Http {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_max_idle_per_host(1)
        .pool_idle_timeout(Duration::from_secs(3600))
        .retry_canceled_requests(false)
        .build(connector)
}

/// Sends one request and returns the pod that answered.
async fn ask(http: &Http, url: Uri) -> Result<String> {
    let answer = http.get(url).await?;
    ensure!(answer.status().is_success(), "status {}", answer.status());
    let pod = answer
        .headers()
        .get("x-pod")
        .and_then(|pod| pod.to_str().ok())
        .map(str::to_owned);
    // The connection returns to the pool only when the body has been read.
    answer
        .into_body()
        .collect()
        .await
        .context("the response body")?;
    pod.context("the response has no x-pod header")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn think_time_is_between_the_shortest_and_twice_that() {
        let times: Vec<u128> = (0..1000)
            .map(|turn| think_time(turn as usize % 60, 300, turn).as_millis())
            .collect();
        assert!(times.iter().all(|time| (300..=600).contains(time)));
        let mean = times.iter().sum::<u128>() / 1000;
        assert!((430..=470).contains(&mean), "{mean}");
    }
}
