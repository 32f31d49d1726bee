//! The object `AddressPool`: what may be given to Services, and what is left.
//!
//! Its rules stand in the schema, so that the API server refuses what cannot be read. What it lets pass
//! all the same is told in the status and costs only the entry that is wrong.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::crd::Condition;
use crate::addresses::{Audience, BadRange, Expression, Operator, Pool, Range, Selector};

/// Addresses that weir may give to Services of type LoadBalancer.
#[derive(Clone, CustomResource, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "weir.dev",
    version = "v1alpha1",
    kind = "AddressPool",
    status = "AddressPoolStatus",
    shortname = "ap",
    category = "weir",
    derive = "PartialEq",
    doc = "Addresses that weir may give to Services of type LoadBalancer.",
    printcolumn = r#"{"name": "Auto", "type": "boolean", "jsonPath": ".spec.autoAssign"}"#,
    printcolumn = r#"{"name": "IPv4-used", "type": "integer", "jsonPath": ".status.ipv4.used"}"#,
    printcolumn = r#"{"name": "IPv4-left", "type": "integer", "jsonPath": ".status.ipv4.available"}"#,
    printcolumn = r#"{"name": "IPv6-used", "type": "integer", "jsonPath": ".status.ipv6.used"}"#,
    printcolumn = r#"{"name": "Services", "type": "integer", "jsonPath": ".status.services"}"#,
    printcolumn = r#"{"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolSpec {
    /// CIDRs such as 192.0.2.0/24, ranges such as 192.0.2.10-192.0.2.20, or single addresses; IPv4 and
    /// IPv6.
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 96)))]
    #[x_kube(validation = Rule::new(IS_RANGE).message(
        "each entry is a CIDR without bits behind its prefix (192.0.2.0/24), a range of one family \
         (192.0.2.10-192.0.2.20) or an address"
    ))]
    pub addresses: Vec<String>,
    /// False: only Services that ask for the pool or for one of its addresses have one.
    #[serde(default = "yes")]
    pub auto_assign: bool,
    /// Pools of greater priority are tried first.
    #[serde(default)]
    pub priority: i32,
    /// Gives addresses that end in .0 or .255 only to who asks for them: some old devices refuse them.
    #[serde(default, rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,
    /// Names of the namespaces whose Services may have addresses, beside the selected ones; neither:
    /// all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 63)))]
    pub namespaces: Vec<String>,
    /// Namespaces by label; one that matches is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub namespace_selectors: Vec<LabelSelector>,
    /// Services by label; one that matches is enough. None: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub service_selectors: Vec<LabelSelector>,
}

const IS_RANGE: &str = "self.all(a, a.contains('/') \
     ? isCIDR(a) && cidr(a) == cidr(a).masked() \
     : a.contains('-') \
     ? a.split('-').size() == 2 && a.split('-').all(p, isIP(p)) \
       && ip(a.split('-')[0]).family() == ip(a.split('-')[1]).family() \
     : isIP(a))";

fn yes() -> bool {
    true
}

/// A label selector; all of it must match.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub match_labels: std::collections::BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub match_expressions: Vec<LabelExpression>,
}

#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 \
     : !has(self.values) || size(self.values) == 0"
).message("In and NotIn need values, Exists and DoesNotExist have none"))]
pub struct LabelExpression {
    pub key: String,
    pub operator: LabelOperator,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub enum LabelOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// What is left of a pool. Counts saturate at the greatest number of 64 bits.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<AddressCounts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<AddressCounts>,
    /// Services that hold addresses of it.
    #[serde(default)]
    pub services: i64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct AddressCounts {
    /// Addresses that are the pool's alone.
    pub total: i64,
    /// Held by Services, or in use by something else in the cluster.
    pub used: i64,
    pub available: i64,
}

impl AddressPool {
    /// For the allocator, and what of its addresses cannot be read.
    pub fn read(&self) -> (Pool, Vec<BadRange>) {
        let spec = &self.spec;
        let (mut ranges, mut bad) = (Vec::new(), Vec::new());
        for text in &spec.addresses {
            match text.parse::<Range>() {
                Ok(range) => ranges.push(range),
                Err(error) => bad.push(error),
            }
        }
        let created = self.metadata.creation_timestamp.as_ref();
        let selectors = |all: &[LabelSelector]| all.iter().map(LabelSelector::read).collect();
        let pool = Pool {
            name: self.metadata.name.clone().unwrap_or_default(),
            created: created.map_or(i64::MAX, |created| created.0.as_second()),
            ranges,
            auto: spec.auto_assign,
            priority: spec.priority,
            avoid_buggy: spec.avoid_buggy_ips,
            audience: Audience {
                namespaces: spec.namespaces.iter().cloned().collect(),
                namespace_selectors: selectors(&spec.namespace_selectors),
                service_selectors: selectors(&spec.service_selectors),
            },
        };
        (pool, bad)
    }
}

impl LabelSelector {
    fn read(&self) -> Selector {
        let expressions = self.match_expressions.iter().map(|expression| {
            let values = || expression.values.iter().cloned().collect();
            let operator = match expression.operator {
                LabelOperator::In => Operator::In(values()),
                LabelOperator::NotIn => Operator::NotIn(values()),
                LabelOperator::Exists => Operator::Exists,
                LabelOperator::DoesNotExist => Operator::DoesNotExist,
            };
            Expression { key: expression.key.clone(), operator }
        });
        Selector { labels: self.match_labels.clone(), expressions: expressions.collect() }
    }
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pool_is_read_and_its_bad_entries_are_told() {
        let pool: AddressPool = serde_json::from_value(json!({
            "apiVersion": "weir.dev/v1alpha1",
            "kind": "AddressPool",
            "metadata": {"name": "public", "creationTimestamp": "1970-01-01T00:00:07Z"},
            "spec": {
                "addresses": ["192.0.2.0/28", "192.0.2.9/24", "2001:db8::1-2001:db8::9"],
                "avoidBuggyIPs": true,
                "namespaces": ["shop"],
                "serviceSelectors": [{
                    "matchLabels": {"a": "b"},
                    "matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["d"]}],
                }],
            },
        }))
        .unwrap();
        let (read, bad) = pool.read();
        assert_eq!(bad.len(), 1, "{bad:?}");
        assert_eq!((read.name.as_str(), read.created, read.priority), ("public", 7, 0));
        assert!(read.auto && read.avoid_buggy);
        assert_eq!(read.ranges.len(), 2);
        let operator = Operator::NotIn(["d".to_owned()].into());
        let expressions = vec![Expression { key: "c".into(), operator }];
        let labels = [("a".into(), "b".into())].into();
        assert_eq!(read.audience.service_selectors, [Selector { labels, expressions }]);
        assert_eq!(read.audience.namespaces, ["shop".to_owned()].into());
    }

    #[test]
    fn the_definition_is_cluster_wide_with_rules_and_a_status() {
        let crd = serde_json::to_value(AddressPool::crd()).unwrap();
        let spec = &crd["spec"];
        assert_eq!(spec["scope"], "Cluster");
        let version = &spec["versions"][0];
        assert_eq!(version["subresources"], json!({"status": {}}));
        let properties = &version["schema"]["openAPIV3Schema"]["properties"];
        let addresses = &properties["spec"]["properties"]["addresses"];
        assert_eq!(addresses["x-kubernetes-validations"][0]["rule"], IS_RANGE);
        assert_eq!(
            (&addresses["maxItems"], &addresses["items"]["maxLength"]),
            (&json!(256), &json!(96))
        );
        let conditions = &properties["status"]["properties"]["conditions"];
        assert_eq!(conditions["x-kubernetes-list-map-keys"], json!(["type"]));
    }
}
