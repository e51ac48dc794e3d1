//! Objects of the API for tests, all of the namespace `shop`: each changes what its case is about.

use serde_json::{Value, from_value, json};

use super::slices::Slice;

/// A ready pod with this uid and address, on this node.
pub(super) fn endpoint(uid: &str, address: &str, node: &str) -> Value {
    json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true},
           "targetRef": {"kind": "Pod", "uid": uid}})
}

/// Endpoints of a Service, on port 80.
pub(super) fn slice(name: &str, service: &str, endpoints: &[Value]) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
           "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 80, "protocol": "TCP"}]})
}

/// The same with another value in this field.
pub(super) fn with(mut object: Value, field: &str, value: Value) -> Value {
    object[field] = value;
    object
}

/// As the agent of node `n1` keeps it.
pub(super) fn kept(slice: Value) -> Slice {
    Slice::of("n1", from_value(slice).unwrap()).unwrap()
}
