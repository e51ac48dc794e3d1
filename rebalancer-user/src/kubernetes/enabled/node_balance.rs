//! The custom resource `NodeBalance`, one for each node and named as it: its agent writes the report
//! (`spec`), the coordinator the views (`status`). It is nobody's configuration.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResource, CustomResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::views::{Report, View};

/// What a node's endpoints hold, as its agent reports it.
#[expect(
    clippy::duplicated_attributes,
    reason = "columns of the same type: the lint compares the arguments of all `printcolumn`s"
)]
#[derive(
    CustomResource, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema,
)]
#[kube(
    group = "rebalancer.dev",
    version = "v1alpha1",
    kind = "NodeBalance",
    plural = "nodebalances",
    shortname = "nb",
    status = "NodeBalanceStatus",
    derive = "PartialEq",
    doc = "What the balanced Services of one node hold (spec, written by its agent), and how that \
           compares with the cluster (status, written by the coordinator). Not to be edited.",
    printcolumn(
        name = "Endpoints",
        type_ = "integer",
        json_path = ".spec.endpoints",
        description = "Ready endpoints of balanced Services on this node"
    ),
    printcolumn(
        name = "Connections",
        type_ = "integer",
        json_path = ".spec.connections",
        description = "Connections of these"
    ),
    printcolumn(
        name = "Views",
        type_ = "integer",
        json_path = ".status.views",
        description = "Services of which all ready endpoints are known"
    ),
    printcolumn(
        name = "Excess",
        type_ = "integer",
        json_path = ".status.excess",
        description = "Connections that endpoints of this node hold above the mean"
    ),
    printcolumn(
        name = "Left-Out",
        type_ = "integer",
        json_path = ".spec.leftOut",
        description = "Services that did not fit into the report",
        priority = 1
    ),
    printcolumn(
        name = "Given-By",
        type_ = "string",
        json_path = ".status.coordinator",
        description = "The coordinator that has given the views",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeBalanceSpec {
    /// The report.
    #[serde(flatten)]
    pub(super) report: Report,
    /// For people, as the next: the endpoints of all of its Services.
    #[serde(default)]
    pub(super) endpoints: u64,
    /// The connections of all of its Services.
    #[serde(default)]
    pub(super) connections: u64,
}

impl NodeBalanceSpec {
    pub(super) fn of(report: Report) -> Self {
        let sum = |of: fn(&crate::views::ServiceReport) -> u64| {
            let services = report.services.iter().map(of);
            services.fold(0, u64::saturating_add)
        };
        Self {
            endpoints: sum(|service| service.loads.len() as u64),
            connections: sum(|service| service.connections),
            report,
        }
    }
}

/// How a node compares with the cluster, as the coordinator has given it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeBalanceStatus {
    /// Another number each time that it is given: its age is counted from when the number changed, on
    /// the clock of who reads it.
    pub(super) sequence: u64,
    /// A view of each Service of the report of which all ready endpoints are known.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub(super) services: Vec<View>,
    /// For people, as all below: their number.
    #[serde(default)]
    pub(super) views: u64,
    /// What endpoints of this node hold above the mean, in connections.
    #[serde(default)]
    pub(super) excess: u64,
    /// The coordinator that has given it.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub(super) coordinator: String,
}

impl NodeBalanceStatus {
    pub(super) fn of(sequence: u64, services: Vec<View>, coordinator: &str) -> Self {
        let by_connections = services.iter().filter(|view| view.key.by == "Connections");
        let excess = by_connections.map(|view| view.excess);
        Self {
            sequence,
            views: services.len() as u64,
            excess: excess.fold(0, u64::saturating_add),
            coordinator: coordinator.to_owned(),
            services,
        }
    }
}

/// Its definition, as YAML for `kubectl apply`.
pub fn definition() -> String {
    let crd: CustomResourceDefinition = NodeBalance::crd();
    let yaml = serde_saphyr::to_string(&crd);
    yaml.unwrap_or_else(|error| unreachable!("the definition is plain data: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json, to_value};

    use super::*;
    use crate::views::{Generation, Key, ServiceReport, Share, Sums};

    fn schema() -> Value {
        let crd = to_value(NodeBalance::crd()).unwrap();
        let versions = crd["spec"]["versions"].as_array().unwrap();
        assert_eq!(versions.len(), 1);
        assert_eq!(versions[0]["subresources"], json!({"status": {}}));
        assert_eq!(crd["spec"]["scope"], "Cluster");
        assert_eq!(crd["metadata"]["name"], "nodebalances.rebalancer.dev");
        versions[0]["schema"]["openAPIV3Schema"].clone()
    }

    #[test]
    fn every_list_and_text_of_the_definition_is_bounded() {
        fn look(at: &str, schema: &Value, seen: &mut usize) {
            match schema["type"].as_str() {
                Some("array") => assert!(schema["maxItems"].is_number(), "{at}: {schema}"),
                Some("string") => {
                    let bounded = schema["maxLength"].is_number() || schema["pattern"].is_string();
                    assert!(bounded, "{at}: {schema}");
                }
                _ => {}
            }
            assert_ne!(schema["x-kubernetes-preserve-unknown-fields"], true, "{at}");
            *seen += 1;
            for (name, part) in schema["properties"].as_object().into_iter().flatten() {
                look(&format!("{at}.{name}"), part, seen);
            }
            if schema["items"].is_object() {
                // A list of numbers has no more to bound.
                look(&format!("{at}[]"), &schema["items"], seen);
            }
        }
        let schema = schema();
        let mut seen = 0;
        for part in ["spec", "status"] {
            look(part, &schema["properties"][part], &mut seen);
        }
        assert!(seen > 30, "{seen}");
    }

    #[test]
    fn it_reads_back_and_its_sums_are_for_people() {
        let key = Key {
            service: "shop/web".to_owned(),
            port: 80,
            zone: Some("z".to_owned()),
            rule: "even".to_owned(),
            by: "Connections".to_owned(),
        };
        let sums = Sums {
            total: 12,
            squares: u128::MAX,
            largest: 1,
        };
        let service = ServiceReport {
            key: key.clone(),
            generation: Generation(u64::MAX),
            ready: 3,
            loads: vec![9, 3],
            sums,
            connections: 14,
            moving: 2,
        };
        let spec = NodeBalanceSpec::of(Report::of(7, vec![service]));
        assert_eq!((spec.endpoints, spec.connections), (2, 14));
        let view = View {
            key,
            sums,
            excess: 5,
            share: Share::ALL,
            ..View::default()
        };
        let mut object = NodeBalance::new("n1", spec);
        object.status = Some(NodeBalanceStatus::of(8, vec![view], "c"));
        let status = object.status.as_ref().unwrap();
        assert_eq!((status.views, status.excess), (1, 5));
        let json = to_value(&object).unwrap();
        assert_eq!(json["spec"]["services"][0]["service"], "shop/web");
        assert_eq!(
            json["spec"]["services"][0]["squares"],
            u128::MAX.to_string()
        );
        assert_eq!(from_value::<NodeBalance>(json).unwrap(), object);
    }
}
