//! Objects of kind `Node`.

use std::collections::BTreeMap;

use super::{
    read::{Place, Value},
    read_unicast,
};
use crate::model::Node;

/// A node and where its parts stand.
#[derive(Debug)]
pub struct NodeDraft {
    pub node: Node,
    /// As `node.addresses`.
    pub addresses: Vec<Place>,
}

/// Reads `spec`; the labels are of the metadata.
pub fn read(name: String, labels: BTreeMap<String, String>, spec: &Value<'_>) -> NodeDraft {
    let mut draft =
        NodeDraft { node: Node { name, addresses: Vec::new(), labels }, addresses: Vec::new() };
    let list = spec
        .fields(&["addresses"])
        .and_then(|spec| spec.required("addresses"))
        .and_then(|addresses| addresses.filled_list());
    for value in list.unwrap_or_default() {
        let Some(address) = read_unicast(&value) else { continue };
        if let Some(other) = draft.node.address_like(address) {
            value.error(format!(
                "{address} is of the same family as {other}; allowed: one IPv4 and one IPv6 address"
            ));
            continue;
        }
        draft.node.addresses.push(address);
        draft.addresses.push(value.place);
    }
    draft
}
