//! The cluster's certificates and a kubeconfig for each client, created by openssl: one CA,
//! elliptic keys.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use fs_err as fs;

use super::{
    layout::{self, Node},
    process::output,
};

/// A file in the folder of certificates.
pub(super) fn file(name: &str) -> PathBuf {
    folder().join(name)
}

fn folder() -> PathBuf {
    layout::state().join("pki")
}

/// The kubeconfig of `client`, the name of a certificate.
pub(super) fn kubeconfig(client: &str) -> PathBuf {
    layout::state().join(format!("{client}.kubeconfig"))
}

pub(super) fn make(nodes: &[Node]) -> Result<()> {
    fs::create_dir_all(folder()).context("the folder of certificates")?;
    key("ca")?;
    openssl(
        "req -x509 -new -key ca.key -subj /CN=kubernetes-ca -days 30 -out ca.crt",
        &[],
    )?;
    // Signs the tokens of service accounts.
    openssl("genrsa -out sa.key 2048", &[])?;
    openssl("rsa -in sa.key -pubout -out sa.pub", &[])?;
    let names = [
        format!("IP:{}", layout::CONTROL_PLANE),
        format!("IP:{}", layout::KUBERNETES),
        "IP:127.0.0.1".to_owned(),
        "DNS:localhost".to_owned(),
        "DNS:kubernetes".to_owned(),
        "DNS:kubernetes.default".to_owned(),
        "DNS:kubernetes.default.svc".to_owned(),
        "DNS:kubernetes.default.svc.cluster.local".to_owned(),
    ];
    certificate("apiserver", "/CN=kube-apiserver", Some(names.join(",")))?;
    let admin = "/O=system:masters/CN=";
    certificate(
        "apiserver-kubelet-client",
        &format!("{admin}kube-apiserver"),
        None,
    )?;
    certificate("front-proxy-client", "/CN=front-proxy-client", None)?;
    client("admin", &format!("{admin}admin"), None)?;
    for name in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
        client(name, &format!("/CN=system:{name}"), None)?;
    }
    for node in nodes {
        let name = node.name();
        let subject = format!("/O=system:nodes/CN=system:node:{name}");
        // The kubelet also serves with it.
        let names = format!("DNS:{name},IP:{}", node.address());
        client(&name, &subject, Some(names))?;
    }
    Ok(())
}

fn client(name: &str, subject: &str, names: Option<String>) -> Result<()> {
    certificate(name, subject, names)?;
    let path = |kind: &str| file(&format!("{name}.{kind}")).display().to_string();
    let text = format!(
        "\
apiVersion: v1
kind: Config
clusters: [{{name: cluster, cluster: {{server: '{server}', certificate-authority: '{ca}'}}}}]
users: [{{name: user, user: {{client-certificate: '{certificate}', client-key: '{key}'}}}}]
contexts: [{{name: context, context: {{cluster: cluster, user: user}}}}]
current-context: context
",
        server = layout::API_SERVER,
        ca = file("ca.crt").display(),
        certificate = path("crt"),
        key = path("key"),
    );
    let path = kubeconfig(name);
    Ok(fs::write(&path, text)?)
}

fn certificate(name: &str, subject: &str, names: Option<String>) -> Result<()> {
    key(name)?;
    openssl(
        &format!("req -new -key {name}.key -out {name}.csr -subj"),
        &[subject],
    )?;
    let mut extensions = "extendedKeyUsage=serverAuth,clientAuth\n".to_owned();
    if let Some(names) = names {
        extensions.push_str(&format!("subjectAltName={names}\n"));
    }
    let path = file(&format!("{name}.ext"));
    fs::write(&path, extensions)?;
    openssl(
        &format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 \
             -extfile {name}.ext -out {name}.crt"
        ),
        &[],
    )
}

fn key(name: &str) -> Result<()> {
    openssl(
        &format!("ecparam -name prime256v1 -genkey -noout -out {name}.key"),
        &[],
    )
}

/// Runs openssl with `words`, which are split at spaces, and `more`, which are not.
fn openssl(words: &str, more: &[&str]) -> Result<()> {
    let folder: &Path = &folder();
    let mut openssl = Command::new("openssl");
    openssl
        .current_dir(folder)
        .args(words.split_whitespace())
        .args(more);
    output(&mut openssl).map(drop)
}
