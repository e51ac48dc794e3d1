//! Why the executor does not move a connection that a plan has chosen: reasons that only show when it
//! inspects the connection, its processes or the moving thread.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One row per refusal: its stable word, its phrase about the connection, and its remedy.
macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident($word:literal) $sentence:literal, $remedy:literal;)*) => {
        /// Why a move was refused. Shown by its word.
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize,
        )]
        pub enum Refusal {
            $($(#[$doc])* #[serde(rename = $word)] $variant,)*
        }

        impl Refusal {
            /// A stable word, for logs and metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// The reason, as a phrase whose subject is the connection.
            pub fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }

            /// The remedy, as a phrase.
            pub fn remedy(self) -> &'static str {
                match self { $(Self::$variant => $remedy,)* }
            }
        }
    };
}

refusals! {
    /// No process was found that holds it, or none of what it is.
    OwnerUnknown("ownerUnknown")
        "is held by a process that was not found or cannot be looked at",
        "CAP_SYS_PTRACE and the host's pid namespace for the agent";
    /// A process in another network namespace or cgroup than the socket's own holds it.
    ForeignProcess("foreignProcess")
        "is held by a process of another network namespace or cgroup, such as a mesh's proxy",
        "that its own process alone holds it";
    /// A process that holds it does not expect to write to a connection that has been reset.
    Sigpipe("sigpipe")
        "has a server that SIGPIPE would kill",
        "a server that ignores or handles SIGPIPE";
    /// HTTP/2: a slow call hides behind the answers to fast ones.
    Http2("http2")
        "speaks HTTP/2, where a slow call hides behind fast ones",
        "a step `Notice` in its rule, or `onReconnect: Safe`, if calls may be lost";
    /// HTTP/2 on a node whose agent cannot tell clients to leave.
    CannotNotice("cannotNotice")
        "speaks HTTP/2, and its client cannot be asked to leave: the kernel refuses the program, or another program has the socket",
        "a kernel with CONFIG_NET_SOCK_MSG; `rebalancer doctor` tries it";
    /// TLS: whatever is in it.
    Tls("tls")
        "speaks TLS, and what is in it is not known",
        "`onReconnect: Safe` in its rule, if a reconnect costs its client nothing";
    /// It has become a WebSocket, a tunnel, or what else its client asked for by HTTP/1: no end of it
    /// is one at which nothing is lost.
    Upgraded("upgraded")
        "has become a WebSocket, a tunnel or the like",
        "`onReconnect: Safe` in its rule, if a reconnect costs its client nothing";
    /// Another protocol than HTTP/1.
    ProtocolUnknown("protocolUnknown")
        "speaks a protocol that was not recognised as HTTP/1",
        "`onReconnect: Safe` in its rule, if a reconnect costs its client nothing";
    /// Nothing for too long.
    Silent("silent")
        "had a client that sent nothing while its protocol was being detected",
        "`onReconnect: Safe` in its rule, if a reconnect costs its client nothing";
    /// Its protocol cannot be detected: the programs are not loaded, or cannot be attached to its cgroup.
    CannotSniff("cannotSniff")
        "has a protocol that cannot be detected: no program is loaded, or none can be attached to its cgroup",
        "`onReconnect: Safe` in its rule, if a reconnect costs its client nothing";
    /// Something holds its lock, and the kernel does not answer about it.
    Unanswered("unanswered")
        "has a socket about which the kernel does not answer",
        "that what holds the socket's lock lets it go";
    /// The moving thread has as many orders as it takes.
    QueueFull("queueFull")
        "found no room in the queue of moves",
        "that moves under way end";
    /// It was ordered again before the first order had ended.
    OrderedTwice("orderedTwice")
        "was ordered to be moved a second time",
        "nothing: the second order counts";
    /// The moving thread is stuck.
    MoverStuck("moverStuck")
        "came while the moving thread waited for the kernel",
        "nothing: the thread is replaced";
    /// The moving thread has ended.
    MoverEnded("moverEnded")
        "came when the moving thread had ended",
        "nothing: the thread is replaced";
    /// This node cannot reset connections.
    NoMechanism("noMechanism")
        "is on a node that cannot reset connections",
        "what `rebalancer doctor` says";
    /// The agent ended.
    Shutdown("shutdown")
        "waited when the agent ended",
        "that an agent runs";
}

impl Refusal {
    /// Whether it is for what was sniffed, where its rule does not say what its end means. On HTTP/1
    /// nothing is lost at a moment at which all that was asked is answered.
    pub(super) fn is_sniffed(self) -> bool {
        matches!(
            self,
            Self::Http2
                | Self::CannotNotice
                | Self::Tls
                | Self::Upgraded
                | Self::ProtocolUnknown
                | Self::Silent
                | Self::CannotSniff
        )
    }

    /// Whether it stays so for as long as the connection lives.
    pub(super) fn lasts(self) -> bool {
        matches!(self, Self::Http2 | Self::Tls | Self::Upgraded)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
