//! Why a connection's sends are not counted, and whether that may change.

use std::{fmt, io, time::Duration};

use crate::plan::Refusal;

/// How long what may pass is left alone. Nothing else is tried twice.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Why a connection does not join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotCounted {
    /// One of its ends has closed.
    NotEstablished,
    /// A subflow of MPTCP, whose parent would not notice.
    Mptcp,
    /// Kernel TLS, or the like, has taken the socket over.
    KernelTls,
    /// As a move of it would be.
    Refused(Refusal),
    /// Yama or a security module forbids to take its process's descriptor.
    Forbidden,
    /// Another program than ours has it.
    Busy,
    /// As many as there is room for are counted.
    Full,
    /// Another error of the kernel.
    Errno(i32),
}

impl NotCounted {
    /// From the error of adding it to the map.
    pub(super) fn by_kernel(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Self::NotEstablished,
            Some(libc::EBUSY) => Self::Busy,
            Some(libc::E2BIG) => Self::Full,
            Some(libc::EPERM) => Self::Forbidden,
            other => Self::Errno(other.unwrap_or(0)),
        }
    }

    /// Whether it may pass while the connection lives.
    pub(super) fn may_pass(self) -> bool {
        match self {
            Self::Refused(refusal) => refusal != Refusal::ForeignProcess,
            Self::Busy | Self::Full | Self::Errno(_) => true,
            Self::NotEstablished | Self::Mptcp | Self::KernelTls | Self::Forbidden => false,
        }
    }
}

impl fmt::Display for NotCounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotEstablished => "notEstablished",
            Self::Mptcp => "mptcp",
            Self::KernelTls => "kernelTls",
            Self::Refused(refusal) => refusal.as_str(),
            Self::Forbidden => "forbidden",
            Self::Busy => "busy",
            Self::Full => "full",
            Self::Errno(errno) => return write!(f, "{}", io::Error::from_raw_os_error(*errno)),
        })
    }
}
