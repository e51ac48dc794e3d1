//! Writes an OCI image layout (image specification 1.0) as a tar: one layer, one manifest. The same
//! root and configuration give the same bytes: times, owners and order do not depend on the
//! machine.

use std::{io::Write as _, path::Path};

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::root::{Entry, Root};
use crate::setup;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image to write.
pub(crate) struct Image<'a> {
    /// Its full reference in containerd: `docker.io/library/x:1` for `x:1` in a manifest.
    pub(crate) name: &'a str,
    pub(crate) root: &'a Root,
    /// `config` of the image configuration: Entrypoint, Env, Labels, …
    pub(crate) config: Value,
}

impl Image<'_> {
    /// The whole layout as a tar; containerd, podman and skopeo read it.
    pub(crate) fn tar(&self) -> Result<Vec<u8>> {
        let layer = layer(self.root).context("the image's layer")?;
        let mut blobs = Blobs::default();
        let packed = blobs.add(LAYER, pack(&layer)?);
        let config = json!({
            "architecture": setup::architecture(),
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        let config = blobs.add(CONFIG, config.to_string().into_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [packed],
        });
        let mut manifest = blobs.add(MANIFEST, manifest.to_string().into_bytes());
        let tag = self.name.rsplit(':').next().unwrap_or("latest");
        manifest["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": tag,
        });
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});

        let mut tar = tar::Builder::new(Vec::new());
        append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append(&mut tar, "index.json", index.to_string().as_bytes())?;
        for (digest, blob) in &blobs.0 {
            append(&mut tar, &format!("blobs/sha256/{digest}"), blob)?;
        }
        tar.into_inner().context("the image")
    }
}

#[derive(Default)]
struct Blobs(Vec<(String, Vec<u8>)>);

impl Blobs {
    /// Adds a blob and returns its descriptor.
    fn add(&mut self, media_type: &str, blob: Vec<u8>) -> Value {
        let name = hex(&blob);
        let descriptor = json!({
            "mediaType": media_type,
            "digest": format!("sha256:{name}"),
            "size": blob.len(),
        });
        self.0.push((name, blob));
        descriptor
    }
}

fn layer(root: &Root) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, entry) in root.entries() {
        let (kind, mode, bytes) = match entry {
            Entry::Folder => (EntryType::Directory, 0o755, &[][..]),
            Entry::File { bytes, mode } => (EntryType::Regular, *mode, &bytes[..]),
            Entry::Link(target) => {
                tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target)?;
                continue;
            }
        };
        tar.append_data(&mut header(kind, mode, bytes.len()), path, bytes)?;
    }
    Ok(tar.into_inner()?)
}

/// A header with owner root and time zero.
fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8]) -> Result<()> {
    let mut header = header(EntryType::Regular, 0o644, bytes.len());
    tar.append_data(&mut header, Path::new(path), bytes)
        .with_context(|| path.to_owned())
}

fn pack(layer: &[u8]) -> Result<Vec<u8>> {
    // The gzip header contains neither a name nor a time.
    let mut packer = GzBuilder::new().write(Vec::new(), Compression::fast());
    packer.write_all(layer).context("gzip")?;
    packer.finish().context("gzip")
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

/// SHA-256 in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn image() -> Vec<u8> {
        let mut root = Root::default();
        root.text("/etc/motd", "hello\n");
        root.link("/bin/sh", "busybox");
        let image = Image {
            name: "docker.io/library/x:1",
            root: &root,
            config: json!({"Entrypoint": ["/bin/sh"]}),
        };
        image.tar().unwrap()
    }

    #[test]
    fn the_image_is_reproducible() {
        assert_eq!(hex(&image()), hex(&image()));
    }

    #[test]
    fn every_descriptor_matches_its_blobs_size_and_digest() {
        let mut files = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(image().as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(path, bytes);
        }
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let name = digest.strip_prefix("sha256:").unwrap();
            let bytes = &files[&format!("blobs/sha256/{name}")];
            assert_eq!(descriptor["size"], bytes.len());
            assert_eq!(hex(bytes), name);
            bytes.clone()
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        let mut layer = Vec::new();
        flate2::read::GzDecoder::new(blob(&manifest["layers"][0]).as_slice())
            .read_to_end(&mut layer)
            .unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer));
        assert_eq!(config["config"]["Entrypoint"][0], "/bin/sh");
    }
}
