//! The small maps, read directly.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
};
use rebalancer_common::{ABI_VERSION, EndpointKey, EndpointSums, Fault, Place, Settings, names};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Error;
use crate::{
    host::folder::{self, FolderError},
    snapshot::CgroupId,
};

/// A shared record as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Raw<T>(pub(super) T);

// SAFETY: `T` has no padding and any bytes are a valid `T`, as zerocopy has checked.
unsafe impl<T: FromBytes + IntoBytes + Immutable + Copy + 'static> Pod for Raw<T> {}

/// The system's own error, if it is one.
pub(super) fn io_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(e) => e.io_error,
        MapError::IoError(e) => e,
        other => io::Error::other(other),
    }
}

/// Opens a pinned map.
pub(super) fn pinned(pins: &Path, name: &str) -> Result<Map, Error> {
    let path = pins.join(name);
    if !path.exists() {
        return Err(Error::NoPins {
            path: pins.to_owned(),
        });
    }
    MapData::from_pin(&path)
        .map_err(anyhow::Error::from)
        .and_then(|data| Ok(Map::from_map_data(data)?))
        .map_err(|e| Error::call(format!("opening the map {}", path.display()), e))
}

/// Sums of every endpoint.
pub fn read_endpoints(pins: &Path) -> Result<BTreeMap<EndpointKey, EndpointSums>, Error> {
    let failed = |e: anyhow::Error| Error::call("reading the endpoints map", e);
    let map = pinned(pins, names::ENDPOINTS)?;
    let map: HashMap<_, Raw<EndpointKey>, Raw<EndpointSums>> =
        map.try_into().map_err(|e: MapError| failed(e.into()))?;
    map.iter()
        .map(|entry| {
            entry
                .map(|(key, sums)| (key.0, sums.0))
                .map_err(|e| failed(e.into()))
        })
        .collect()
}

/// The capacity of the map of endpoints.
pub fn endpoints_capacity(pins: &Path) -> Result<u64, Error> {
    let failed = |e: anyhow::Error| Error::call("asking of the endpoints map", e);
    let path = pins.join(names::ENDPOINTS);
    let info = aya::maps::MapInfo::from_pin(&path).map_err(|e| failed(e.into()))?;
    Ok(info.max_entries().into())
}

/// Endpoints that were empty when they were last looked at, and their sums then.
#[derive(Debug, Default)]
pub struct EmptyEndpoints(BTreeMap<EndpointKey, EndpointSums>);

impl EmptyEndpoints {
    /// Removes the endpoints that are empty now and were empty the last time, if nothing was accepted in
    /// between or since, and counts the remaining ones of each namespace. Returns how many were removed.
    pub fn forget(
        &mut self,
        pins: &Path,
        empty: &BTreeMap<EndpointKey, EndpointSums>,
    ) -> Result<usize, Error> {
        let mut still = empty.clone();
        still.retain(|key, sums| self.0.get(key) == Some(sums));
        self.0.clone_from(empty);
        if still.is_empty() {
            return Ok(0);
        }
        remove_endpoints(pins, still)
    }
}

/// Removes those of these endpoints whose sums are unchanged, and counts the remaining ones of each
/// namespace. Returns how many were removed.
pub fn remove_endpoints(
    pins: &Path,
    empty: BTreeMap<EndpointKey, EndpointSums>,
) -> Result<usize, Error> {
    let failed = |e: MapError| Error::call("removing from the endpoints map", e);
    let mut map: HashMap<_, Raw<EndpointKey>, Raw<EndpointSums>> =
        pinned(pins, names::ENDPOINTS)?.try_into().map_err(failed)?;
    let mut gone = Vec::new();
    for (key, sums) in empty {
        // Something may have come since the pass. What comes between these two calls is recorded
        // all the same, and starts the endpoint again.
        if map.get(&Raw(key), 0).is_ok_and(|now| now.0 == sums) && map.remove(&Raw(key)).is_ok() {
            gone.push(key);
        }
    }
    let mut counts = BTreeMap::<Place, u64>::new();
    for key in &gone {
        counts.entry(key.place()).or_default();
    }
    for key in read_endpoints(pins)?.keys() {
        if let Some(count) = counts.get_mut(&key.place()) {
            *count += 1;
        }
    }
    let mut places: HashMap<_, Raw<Place>, u64> =
        pinned(pins, names::PLACES)?.try_into().map_err(failed)?;
    for (place, count) in counts {
        // One that is made at this very moment may go uncounted: the cap is late by it.
        match count {
            0 => drop(places.remove(&Raw(place))),
            count => places.insert(Raw(place), count, 0).map_err(failed)?,
        }
    }
    Ok(gone.len())
}

/// The faults of the kernel half so far, summed over CPUs; only those that occurred.
pub fn read_faults(pins: &Path) -> Result<BTreeMap<Fault, u64>, Error> {
    let failed = |e: anyhow::Error| Error::call("reading the faults map", e);
    let map: PerCpuArray<_, u64> = pinned(pins, names::FAULTS)?
        .try_into()
        .map_err(|e: MapError| failed(e.into()))?;
    let mut faults = BTreeMap::new();
    for fault in Fault::ALL {
        let counts = map.get(&(*fault as u32), 0).map_err(|e| failed(e.into()))?;
        let sum: u64 = counts.iter().sum();
        if sum > 0 {
            faults.insert(*fault, sum);
        }
    }
    Ok(faults)
}

/// Fails unless the pinned maps are ours and of this program's ABI version.
pub(super) fn check_abi(pins: &Path) -> Result<(), Error> {
    check_owner(pins)?;
    let found = settings(pins)?.abi_version;
    if found != ABI_VERSION {
        return Err(Error::Abi {
            path: pins.to_owned(),
            found,
            expected: ABI_VERSION,
        });
    }
    Ok(())
}

/// Whether all that the programs share is pinned in `pins`, in this program's ABI version; else
/// why it cannot be taken over.
pub(super) fn complete(pins: &Path, names: &[&str]) -> Result<(), String> {
    if let Some(missing) = names.iter().find(|name| !pins.join(name).exists()) {
        return Err(format!("{missing} is missing"));
    }
    match settings(pins).map(|settings| settings.abi_version) {
        Ok(ABI_VERSION) => Ok(()),
        Ok(other) => Err(format!(
            "they have ABI version {other}, this program speaks {ABI_VERSION}"
        )),
        Err(error) => Err(error.to_string()),
    }
}

/// Process id of the agent that pinned the maps, if there is one.
pub fn agent_pid(pins: &Path) -> Option<u32> {
    settings(pins).ok().map(|settings| settings.agent_pid)
}

fn settings(pins: &Path) -> Result<Settings, Error> {
    let failed = |e: MapError| Error::call("reading the settings map", e);
    let map: Array<_, Raw<Settings>> = pinned(pins, names::SETTINGS)?.try_into().map_err(failed)?;
    Ok(map.get(&0, 0).map_err(failed)?.0)
}

/// Sets what the kernel half records.
pub(super) fn write_settings(pins: &Path, settings: Settings) -> Result<(), Error> {
    let failed = |e: MapError| Error::call("writing the settings map", e);
    let mut map: Array<_, Raw<Settings>> =
        pinned(pins, names::SETTINGS)?.try_into().map_err(failed)?;
    map.set(0, Raw(settings), 0).map_err(failed)
}

/// The cgroups that the kernel half excludes.
pub(super) fn read_excluded(pins: &Path) -> Result<BTreeSet<CgroupId>, Error> {
    let failed = |e: MapError| Error::call("reading the excluded map", e);
    let map: HashMap<_, u64, u32> = pinned(pins, names::EXCLUDED)?.try_into().map_err(failed)?;
    map.keys()
        .map(|id| id.map(CgroupId).map_err(failed))
        .collect()
}

/// Sets the cgroups that the kernel half excludes; `before` are those that it excludes now. Returns whether
/// anything has changed.
pub(super) fn write_excluded(
    pins: &Path,
    before: &BTreeSet<CgroupId>,
    excluded: &BTreeSet<CgroupId>,
) -> Result<bool, Error> {
    let failed = |e: MapError| Error::call("writing the excluded map", e);
    let mut map: HashMap<_, u64, u32> =
        pinned(pins, names::EXCLUDED)?.try_into().map_err(failed)?;
    // Removals first: they make room.
    for id in before.difference(excluded) {
        // It is not there if telling of it has failed.
        let _absent = map.remove(&id.0);
    }
    for id in excluded.difference(before) {
        map.insert(id.0, 1, 0).map_err(failed)?;
    }
    Ok(before != excluded)
}

/// Fails if the pins in `path` may be another user's, whose maps must not be trusted.
fn check_owner(path: &Path) -> Result<(), Error> {
    match folder::look_into(path) {
        // Opening a pin reports better what is missing.
        Ok(_) | Err(FolderError::Io(_)) => Ok(()),
        Err(why) => Err(Error::NotOurs {
            path: path.to_owned(),
            why,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn pins_of_an_untrusted_directory_are_not_read() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("pins");
        fs::create_dir(around.path().join("theirs")).unwrap();
        std::os::unix::fs::symlink(around.path().join("theirs"), &path).unwrap();
        let message = check_owner(&path).unwrap_err().to_string();
        assert!(
            message.contains("it is a symbolic link") && message.contains("--pins"),
            "{message}"
        );
        check_owner(&around.path().join("nothing")).unwrap();
    }
}
