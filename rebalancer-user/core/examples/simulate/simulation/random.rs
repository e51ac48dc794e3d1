//! Chance from one seed. The kinds of clients, their placement and delays come from three separate
//! streams, so that two runs differ only by the moves made in them.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Exp1, LogNormal, Pareto};

pub(crate) struct Random {
    clients: ChaCha8Rng,
    places: ChaCha8Rng,
    times: ChaCha8Rng,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let stream = |number| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(number);
            rng
        };
        Self {
            clients: stream(1),
            places: stream(2),
            times: stream(3),
        }
    }

    /// One of `count`, uniformly: how kube-proxy chooses an endpoint.
    pub(crate) fn place(&mut self, count: usize) -> usize {
        self.places.random_range(0..count)
    }

    /// One of `count` clients: a few have many connections, most have few.
    pub(crate) fn client(&mut self, count: usize) -> usize {
        let rank = pareto(1.0, 0.8).sample(&mut self.clients);
        (rank as usize - 1) % count
    }

    /// Heavy-tailed with the mean 1: most are far below it.
    pub(crate) fn rate(&mut self) -> f64 {
        // The mean of a Pareto with the shape 1.5 is three times its least.
        pareto(1.0 / 3.0, 1.5).sample(&mut self.clients)
    }

    /// The rate within one interval, with the mean 1.
    pub(crate) fn burst(&mut self) -> f64 {
        log_normal(-0.125, 0.5).sample(&mut self.times)
    }

    /// How long a client stays: mostly a fraction of `mean`, rarely many times that.
    pub(crate) fn lifetime(&mut self, mean: Duration) -> Duration {
        let times = log_normal(-0.72, 1.2).sample(&mut self.clients);
        mean.mul_f64(times)
    }

    /// A share of `whole`, uniformly.
    pub(crate) fn share(&mut self, whole: Duration) -> Duration {
        whole.mul_f64(self.clients.random())
    }

    /// The time until the next event of a Poisson process with this mean.
    pub(crate) fn gap(&mut self, mean: Duration) -> Duration {
        let times: f64 = Exp1.sample(&mut self.clients);
        mean.mul_f64(times)
    }

    /// The time until a client reconnects: mostly some hundred milliseconds, rarely ten seconds.
    pub(crate) fn backoff(&mut self) -> Duration {
        let seconds: f64 = log_normal(-1.2, 1.1).sample(&mut self.times);
        Duration::from_secs_f64(seconds.min(30.0))
    }

    /// From 0.5 to 1.5 times `mean`, uniformly.
    pub(crate) fn around(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(0.5 + self.times.random::<f64>())
    }

    /// The time until a connection is quiet and its move ends it.
    pub(crate) fn quiet(&mut self) -> Duration {
        let seconds: f64 = log_normal(-2.0, 1.0).sample(&mut self.times);
        Duration::from_secs_f64(seconds.min(10.0))
    }
}

fn pareto(scale: f64, shape: f64) -> Pareto<f64> {
    Pareto::new(scale, shape).expect("positive numbers")
}

fn log_normal(mean: f64, deviation: f64) -> LogNormal<f64> {
    LogNormal::new(mean, deviation).expect("a positive deviation")
}
