//! The policy file's JSON Schema, for editors: derived from the file's types, with the notation
//! of each kind of value.
//!
//! What [`super::parse`] accepts it accepts; of what `parse` refuses it refuses all that a schema
//! can: shape, words, units and ranges, but not what one field means for another.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};

use super::file::PolicyFile;

/// The schema, as indented JSON.
pub fn schema() -> String {
    // A schema is made of JSON values alone, so this cannot fail; `{}` accepts everything.
    serde_json::to_string_pretty(&root()).unwrap_or_else(|_| "{}".to_owned())
}

/// The schema, to look into.
pub(super) fn as_value() -> serde_json::Value {
    root().to_value()
}

fn root() -> Schema {
    SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<PolicyFile>()
}

/// Notations of single values, named in the file's types.
macro_rules! notations {
    ($($name:ident: $schema:tt)*) => {$(
        pub(super) enum $name {}

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

notations! {
    ApiVersion: {"const": "rebalancer.dev/v1alpha1"}
    Kind: {"const": "RebalancePolicy"}
    Modes: {"enum": ["Disabled", "DryRun", "Enforce"]}
    Duration: {"title": "duration", "type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
    Size: {
        "title": "size",
        "type": ["string", "number"],
        "pattern": "^[0-9]{1,20}(\\.[0-9]{1,18})?(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?$",
        "exclusiveMinimum": 0
    }
    Percentage: {"title": "percentage", "type": "string", "pattern": "^0*(100|[0-9]{1,2})%$"}
    Amounts: {
        "title": "percentage or number",
        "type": ["integer", "string"],
        "minimum": 1,
        "maximum": 1_000_000,
        "pattern": "^0*(100|[1-9][0-9]?)%$"
    }
    Tolerance: {"title": "percentage", "type": "string", "pattern": "^0*(100|[1-9][0-9]?)%$"}
    Counts: {"type": "integer", "minimum": 1, "maximum": 10_000}
    PerEndpoint: {"type": "integer", "minimum": 1, "maximum": 1_048_576}
    PerNode: {"type": "integer", "minimum": 1, "maximum": 4_194_304}
    Port: {"type": "integer", "minimum": 1, "maximum": 65_535}
    Name: {"title": "DNS label", "type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}
    CgroupGlob: {"title": "glob", "type": "string", "pattern": "^[/*?\\[{]", "minLength": 1, "maxLength": 512}
    Network: {"title": "CIDR block", "type": "string", "pattern": "^[0-9a-fA-F:.]+/[0-9]{1,3}$"}
    ServiceName: {
        "title": "Service",
        "type": "string",
        "pattern": "^([*]|[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)/[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
    }
    LabelKey: {
        "title": "label key",
        "type": "string",
        "pattern": "^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
    }
    LabelValue: {
        "title": "label value",
        "type": "string",
        "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
    }
    Operators: {"enum": ["In", "NotIn", "Exists", "DoesNotExist"]}
    OnReconnects: {"enum": ["Detect", "Safe", "LosesState"]}
    Counted: {"enum": ["Messages"]}
    Loads: {"enum": ["Connections", "ByteRate", "MessageRate"]}
    StepKinds: {"enum": ["Close", "Reset"]}
    Conditions: {"enum": ["Quiet", "AtOnce"]}
    Ends: {"enum": ["Skip", "ResetNow"]}
}
