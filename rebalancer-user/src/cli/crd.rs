//! `rebalancer crd`: the definition of the resource through which agents and coordinator speak.

use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::Args;

use crate::kubernetes;

/// Print the CustomResourceDefinition of NodeBalance, for `kubectl apply -f -`.
///
/// It is part of deploy/components/coordinator and of the chart.
#[derive(Args)]
pub(super) struct Crd {}

impl Crd {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let definition = kubernetes::definition();
        let out = &mut io::stdout().lock();
        out.write_all(definition.as_bytes())
            .context("writing to stdout")
    }
}
