//! Ports that show what a connection is for.

/// The node's own services and those of the control plane. A rule reaches them only through
/// `guards.allowSystemPorts`: to end the wrong one may cut the node off.
const SYSTEM: [(u16, &str); 17] = [
    (22, "SSH"),
    (53, "DNS"),
    (111, "rpcbind"),
    (179, "BGP"),
    (853, "DNS over TLS"),
    (2379, "etcd"),
    (2380, "etcd peers"),
    (4240, "Cilium health"),
    (6443, "Kubernetes API server"),
    (9099, "Calico health"),
    (10248, "kubelet health"),
    (10249, "kube-proxy metrics"),
    (10250, "kubelet"),
    (10255, "kubelet, read-only"),
    (10256, "kube-proxy health"),
    (10257, "kube-controller-manager"),
    (10259, "kube-scheduler"),
];

/// gRPC's usual port.
const GRPC: u16 = 50051;

/// Protocols that keep a session's state in the connection: a transaction, a subscription, a
/// lock, a login. It may look idle and yet lose something. A rule reaches them only by
/// `onReconnect: LosesState`.
///
/// HTTP/2 is one of them: a slow call hides behind the answers to others, and no counter of TCP
/// distinguishes it from HTTP/1.1. Its usual ports are listed here; on others the agent detects it from
/// the first bytes sniffed before a move.
const STATEFUL: [(u16, &str); 46] = [
    (21, "FTP"),
    (25, "SMTP"),
    (110, "POP3"),
    (143, "IMAP"),
    (389, "LDAP"),
    (443, "HTTPS, often HTTP/2"),
    (445, "SMB"),
    (465, "SMTP"),
    (587, "SMTP"),
    (636, "LDAP"),
    (993, "IMAP"),
    (995, "POP3"),
    (1433, "SQL Server"),
    (1521, "Oracle"),
    (1883, "MQTT"),
    (2049, "NFS"),
    (2181, "ZooKeeper"),
    (3260, "iSCSI"),
    (3306, "MySQL"),
    (3389, "RDP"),
    (4222, "NATS"),
    (5222, "XMPP"),
    (5432, "PostgreSQL"),
    (5552, "RabbitMQ streams"),
    (5671, "AMQP"),
    (5672, "AMQP"),
    (5900, "VNC"),
    (6379, "Redis"),
    (6380, "Redis"),
    (6432, "PgBouncer"),
    (8443, "HTTPS, often HTTP/2"),
    (8883, "MQTT"),
    (9042, "Cassandra"),
    (9092, "Kafka"),
    (9093, "Kafka"),
    (9094, "Kafka"),
    (9142, "Cassandra"),
    (11211, "memcached"),
    (26257, "CockroachDB"),
    (26379, "Redis Sentinel"),
    (27017, "MongoDB"),
    (27018, "MongoDB"),
    (27019, "MongoDB"),
    (33060, "MySQL X"),
    (GRPC, "gRPC"),
    (61613, "STOMP"),
];

/// Whose port it is, if it is a system port.
pub(super) fn system(port: u16) -> Option<&'static str> {
    look_up(&SYSTEM, port)
}

/// The protocol, if it is one that keeps state.
pub(super) fn stateful(port: u16) -> Option<&'static str> {
    look_up(&STATEFUL, port)
}

/// Whether it is the port of HTTP/2 in clear text, for which there is the step Notice.
pub(super) fn is_http2(port: u16) -> bool {
    port == GRPC
}

fn look_up(table: &[(u16, &'static str)], port: u16) -> Option<&'static str> {
    let index = table.binary_search_by_key(&port, |(port, _)| *port).ok()?;
    table.get(index).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_sorted_and_apart() {
        assert!(SYSTEM.is_sorted_by(|a, b| a.0 < b.0));
        assert!(STATEFUL.is_sorted_by(|a, b| a.0 < b.0));
        assert!(SYSTEM.iter().all(|(port, _)| stateful(*port).is_none()));
        assert_eq!(
            (system(22), stateful(5432)),
            (Some("SSH"), Some("PostgreSQL"))
        );
        assert_eq!((system(80), stateful(80)), (None, None));
    }
}
