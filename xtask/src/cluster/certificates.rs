//! The cluster's certificates and a kubeconfig for each client, created by openssl: one CA,
//! elliptic keys.

use std::{path::PathBuf, process::Command};

use anyhow::Result;
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

/// The alternative names of a certificate are in the environment.
const CONFIGURATION: &str = "\
[req]
distinguished_name = subject
[subject]
[ca]
basicConstraints = critical, CA:TRUE
[leaf]
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = $ENV::NAMES
";

pub(super) fn make(nodes: &[Node]) -> Result<()> {
    fs::create_dir_all(folder())?;
    fs::write(file("openssl.cnf"), CONFIGURATION)?;
    issue("ca", "/CN=kubernetes-ca", "", "-extensions ca")?;
    // Signs the tokens of service accounts.
    openssl("genrsa -out sa.key 2048", "")?;
    openssl("rsa -in sa.key -pubout -out sa.pub", "")?;
    let names = format!(
        "IP:{},IP:{},IP:127.0.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,\
         DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local",
        layout::CONTROL_PLANE,
        layout::KUBERNETES
    );
    certificate("apiserver", "/CN=kube-apiserver", &names)?;
    let admin = "/O=system:masters/CN=";
    let kubelet_client = "apiserver-kubelet-client";
    let subject = format!("{admin}kube-apiserver");
    certificate(kubelet_client, &subject, "DNS:kube-apiserver")?;
    let proxy = "front-proxy-client";
    certificate(proxy, "/CN=front-proxy-client", "DNS:front-proxy-client")?;
    client("admin", &format!("{admin}admin"), "DNS:admin")?;
    for name in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
        client(name, &format!("/CN=system:{name}"), &format!("DNS:{name}"))?;
    }
    for node in nodes {
        let name = node.name();
        let subject = format!("/O=system:nodes/CN=system:node:{name}");
        // The kubelet also serves with it.
        let names = format!("DNS:{name},IP:{}", node.address());
        client(&name, &subject, &names)?;
    }
    Ok(())
}

fn client(name: &str, subject: &str, names: &str) -> Result<()> {
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

fn certificate(name: &str, subject: &str, names: &str) -> Result<()> {
    let signed = "-extensions leaf -CA ca.crt -CAkey ca.key";
    issue(name, subject, names, signed)
}

/// Makes a key and its certificate.
fn issue(name: &str, subject: &str, names: &str, options: &str) -> Result<()> {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc";
    let files = format!("-config openssl.cnf -keyout {name}.key -out {name}.crt");
    let words = format!("req -x509 {key} {files} -days 30 -subj {subject} {options}");
    openssl(&words, names)
}

/// Runs openssl with `words`, which are split at spaces.
fn openssl(words: &str, names: &str) -> Result<()> {
    let mut openssl = Command::new("openssl");
    openssl.current_dir(folder()).args(words.split(' '));
    output(openssl.env("NAMES", names)).map(drop)
}
