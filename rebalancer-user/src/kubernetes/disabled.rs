//! As [`super::enabled`], built without Kubernetes: there is nobody to ask.

use std::{path::Path, time::Duration};

use super::{Access, Ask, Notice, PodAt};
use crate::{
    snapshot::Snapshot,
    views::{ServiceReport, Views},
};

/// Events that nobody can write: this program was built without Kubernetes.
#[derive(Debug)]
pub enum EventWriter {}

impl EventWriter {
    /// As with Kubernetes, for nobody.
    ///
    /// # Errors
    /// Never.
    pub async fn connect(_: &Access, _: Option<PodAt>) -> anyhow::Result<Option<Self>> {
        Ok(None)
    }

    /// Never called.
    pub fn send(&self, _: Notice) {
        match *self {}
    }
}

/// As with Kubernetes, for nobody.
///
/// # Errors
/// Never.
pub async fn write_event(_: &Access, _: PodAt, _: Notice) -> anyhow::Result<()> {
    Ok(())
}

/// Reports that nobody reads: this program was built without Kubernetes.
#[derive(Debug)]
pub enum Exchange {}

impl Exchange {
    /// As the other: nobody to exchange with.
    ///
    /// # Errors
    /// Never.
    pub async fn connect(_: &Access) -> anyhow::Result<Option<Self>> {
        Ok(None)
    }

    /// Never called.
    pub fn offer(&self, _: Vec<ServiceReport>) {
        match *self {}
    }

    /// Never called.
    pub fn views(&self) -> Views {
        match *self {}
    }

    /// Never called.
    pub fn trouble(&self) -> Option<String> {
        match *self {}
    }
}

/// Names that nobody can know: this program was built without Kubernetes.
#[derive(Debug)]
pub enum Names {}

impl Names {
    /// As the other: nothing to ask.
    ///
    /// # Errors
    /// If it must be asked.
    pub async fn connect(
        access: &Access,
        _: Option<&Path>,
        _: Duration,
    ) -> anyhow::Result<Option<Self>> {
        if access.ask == Ask::On || access.kubeconfig.is_some() {
            anyhow::bail!("this program was built without Kubernetes (feature `kubernetes`)");
        }
        Ok(None)
    }

    /// Never called.
    ///
    /// # Errors
    /// Never.
    pub fn stabilization_window(&mut self, _: Duration) -> anyhow::Result<()> {
        match *self {}
    }

    /// Never called.
    pub async fn listed(&self, _: Duration) -> bool {
        match *self {}
    }

    /// Never called.
    pub fn name(&mut self, _: &mut Snapshot) {
        match *self {}
    }

    /// Never called.
    pub async fn pod_leaves(&self) {
        match *self {}
    }

    /// Never called.
    pub fn knows_namespaces(&self) -> bool {
        match *self {}
    }

    /// Never called.
    pub fn paused(&self, _: &str) -> Option<String> {
        match *self {}
    }

    /// Never called.
    pub fn age(&self) -> Option<Duration> {
        match *self {}
    }

    /// Never called.
    pub fn counts(&self) -> [usize; 3] {
        match *self {}
    }
}
