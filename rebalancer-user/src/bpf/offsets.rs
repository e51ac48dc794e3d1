//! What the programs need to know of the running kernel, from its BTF.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aya::{Btf, Endianness};
use btfparse::{Offset, Readable, TypeInformation};
use rebalancer_common::offsets::{ABSENT, BITS, OPTIONAL, Offsets};
use zerocopy::FromBytes as _;

use super::{Error, nesting};

/// Where the kernel shows its BTF.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Facts of the running kernel.
///
/// Read once per process: finding the offsets takes about 150 ms, and 63 MB meanwhile.
pub struct Kernel {
    /// Frozen into the programs.
    pub(super) offsets: Offsets,
    /// Inode of the host's network namespace.
    pub(super) host_netns: u32,
    /// Where its BTF is.
    path: PathBuf,
    /// Its types, once they were needed.
    types: Mutex<Option<Arc<Btf>>>,
    /// See [`Kernel::walked`].
    walked_ns: AtomicU64,
}

impl Kernel {
    /// Reads `/sys/kernel/btf/vmlinux` and finds the host's network namespace.
    pub fn read() -> Result<Self, Error> {
        Self::read_from(Path::new(VMLINUX))
    }

    fn read_from(path: &Path) -> Result<Self, Error> {
        let raw = fs::read(path).map_err(|why| Error::NoBtf {
            path: path.to_owned(),
            why,
        })?;
        let offsets = find(&raw).map_err(|what| Error::Btf {
            path: path.to_owned(),
            what,
        })?;
        let host_netns = host_netns()?;
        Ok(Self {
            offsets,
            host_netns,
            path: path.to_owned(),
            types: Mutex::default(),
            walked_ns: AtomicU64::new(0),
        })
    }

    /// The kernel's types, for loading programs.
    pub(super) fn btf(&self) -> Result<Arc<Btf>, Error> {
        let mut types = self.types.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*types {
            return Ok(Arc::clone(known));
        }
        let read = Btf::parse_file(&self.path, Endianness::default()).map_err(|e| Error::Btf {
            path: self.path.clone(),
            what: e.to_string(),
        })?;
        Ok(Arc::clone(types.insert(Arc::new(read))))
    }

    /// Frees the kernel's types, 20 MB: after the start programs are rarely loaded.
    pub fn forget_types(&self) {
        *self.types.lock().unwrap_or_else(PoisonError::into_inner) = None;
        crate::host::return_memory();
    }

    /// CPU time that the walks of this process took, over all processes or the holders among them, by
    /// whatever thread.
    pub fn walked(&self) -> Duration {
        Duration::from_nanos(self.walked_ns.load(Ordering::Relaxed))
    }

    pub(super) fn has_walked(&self, cpu: Duration) {
        let nanos = u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX);
        self.walked_ns.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Inode of the host's network namespace.
    pub fn host_netns(&self) -> crate::snapshot::Netns {
        crate::snapshot::Netns(self.host_netns)
    }
}

/// The host's network namespace is that of process 1, as this process sees it (`hostPID`). Where that cannot
/// be read (CAP_SYS_PTRACE is missing, or process 1 has more capabilities), our own is assumed.
fn host_netns() -> Result<u32, Error> {
    let meta = fs::metadata("/proc/1/ns/net").or_else(|_| fs::metadata("/proc/self/ns/net"));
    Ok(meta
        .map_err(|e| Error::call("stat /proc/self/ns/net", e))?
        .ino() as u32)
}

/// Every offset, in the order of the fields of [`Offsets`].
pub(super) fn find(btf: &[u8]) -> Result<Offsets, String> {
    let types = TypeInformation::new(&Memory(btf)).map_err(|e| format!("damaged BTF: {e:?}"))?;
    nesting::check(types.get()).map_err(|what| format!("damaged BTF: {what}"))?;
    let mut values = Vec::with_capacity(Offsets::PATHS.len());
    for (field, structure, member) in Offsets::PATHS {
        let found = types
            .id_of(structure)
            .ok_or_else(|| format!("no struct {structure}"))
            .and_then(|id| {
                types
                    .offset_of(id, member)
                    .map_err(|e| format!("{structure}.{member}: {e:?}"))
            });
        values.push(match found {
            Ok((_, Offset::ByteOffset(offset))) if !BITS.contains(field) => offset,
            Ok((_, Offset::BitOffsetAndSize(offset, 1))) if BITS.contains(field) => offset,
            Ok((_, bits)) => {
                return Err(format!(
                    "{structure}.{member} is not what was expected: {bits:?}"
                ));
            }
            Err(_) if OPTIONAL.contains(field) => ABSENT,
            Err(what) => return Err(what),
        });
    }
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
    Offsets::read_from_bytes(&bytes).map_err(|_| "offsets and their table differ".to_owned())
}

/// For fuzzing: must not panic.
#[cfg(any(test, fuzzing))]
pub(crate) fn find_offsets(btf: &[u8]) {
    let _ = find(btf);
}

/// BTF that is in memory already.
struct Memory<'a>(&'a [u8]);

impl Readable for Memory<'_> {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> btfparse::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let source = start
            .checked_add(buffer.len())
            .and_then(|end| self.0.get(start..end));
        match source {
            Some(source) => {
                buffer.copy_from_slice(source);
                Ok(())
            }
            None => Err(btfparse::Error::new(
                btfparse::ErrorKind::EOF,
                "read beyond the end of the BTF",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_btf_is_an_error_with_a_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("btf");
        for bytes in [&b""[..], b"\x9f\xeb\x01\x00", &[0xff; 4096]] {
            fs::write(&file, bytes).unwrap();
            let error = Kernel::read_from(&file).err().expect("damaged").to_string();
            assert!(error.contains(file.to_str().unwrap()), "{error}");
        }
        let error = Kernel::read_from(&dir.path().join("none"))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("CONFIG_DEBUG_INFO_BTF"), "{error}");
    }
}
