//! Interfaces and tc filters as the kernel lists them (rtnetlink). Reads only.

use std::collections::BTreeMap;

use anyhow::Context;
use futures::TryStreamExt;
use lb_common::abi::program;
use netlink_packet_route::{
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp},
    tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};

use super::facts::LinkFacts;

/// One interface.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub index: u32,
    pub facts: LinkFacts,
    /// Ids of the programs at the XDP hook.
    pub xdp: Vec<u32>,
    /// Filters below clsact that are not weir's: `clsact egress: name`.
    pub filters: Option<Vec<String>>,
}

/// All interfaces of this network namespace by name; filters only for those `wanted`.
pub fn list(wanted: &[String]) -> anyhow::Result<BTreeMap<String, Found>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().context("open netlink")?;
        tokio::spawn(connection);
        let messages: Vec<_> = handle.link().get().execute().try_collect().await?;
        let mut links = from_messages(&messages);
        for (name, found) in &mut links {
            if wanted.contains(name) {
                found.filters = filters(&handle, found.index as i32).await.ok();
            }
        }
        Ok(links)
    })
}

async fn filters(handle: &rtnetlink::Handle, index: i32) -> anyhow::Result<Vec<String>> {
    let (mut ingress, mut egress) = (handle.traffic_filter(index), handle.traffic_filter(index));
    let ingress: Vec<_> = ingress.get().ingress().execute().try_collect().await?;
    let egress: Vec<_> = egress.get().egress().execute().try_collect().await?;
    let mut found = filter_names("clsact ingress", &ingress);
    found.extend(filter_names("clsact egress", &egress));
    Ok(found)
}

/// What is there of others; a filter of several rules is named once.
fn filter_names(place: &str, messages: &[TcMessage]) -> Vec<String> {
    let mut names = Vec::new();
    for message in messages {
        let mut kind = "filter";
        let mut name = None;
        for attribute in &message.attributes {
            match attribute {
                TcAttribute::Kind(found) => kind = found,
                TcAttribute::Options(options) => {
                    name = options.iter().find_map(|option| match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.as_str()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        // The kernel lists each priority once more, without handle and rules.
        let rule = message.header.handle != TcHandle::UNSPEC;
        if !rule || name.is_some_and(|name| name.starts_with(program::EGRESS)) {
            continue;
        }
        let text = format!("{place}: {}", name.unwrap_or(kind));
        if !names.contains(&text) {
            names.push(text);
        }
    }
    names
}

fn from_messages(messages: &[LinkMessage]) -> BTreeMap<String, Found> {
    let mut links = BTreeMap::new();
    let mut vlans: Vec<(u32, String)> = Vec::new();
    for message in messages {
        let mut found = Found { index: message.header.index, ..Default::default() };
        found.facts.up = message.header.flags.contains(LinkFlags::Up);
        found.facts.ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        let (mut name, mut below, mut is_vlan) = (String::new(), None, false);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(found) => name.clone_from(found),
                LinkAttribute::Mtu(mtu) => found.facts.mtu = *mtu,
                LinkAttribute::Link(index) => below = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    is_vlan = infos.contains(&LinkInfo::Kind(InfoKind::Vlan));
                }
                LinkAttribute::Xdp(options) => found.xdp = xdp_programs(options),
                _ => {}
            }
        }
        if let Some(below) = below.filter(|_| is_vlan) {
            vlans.push((below, name.clone()));
        }
        links.insert(name, found);
    }
    for (below, vlan) in vlans {
        if let Some(found) = links.values_mut().find(|found| found.index == below) {
            found.facts.vlans.push(vlan);
        }
    }
    links
}

/// Whatever the mode; with several modes at once the kernel names each in an attribute of its own.
fn xdp_programs(options: &[LinkXdp]) -> Vec<u32> {
    let mut ids: Vec<_> = options
        .iter()
        .filter_map(|option| match option {
            LinkXdp::ProgId(id)
            | LinkXdp::DrvProgId(id)
            | LinkXdp::SkbProgId(id)
            | LinkXdp::HwProgId(id) => Some(*id),
            _ => None,
        })
        .filter(|id| *id != 0)
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vlan_is_listed_under_the_interface_below_it_and_xdp_once() {
        let mut below = LinkMessage::default();
        below.header.index = 7;
        below.header.flags = LinkFlags::Up;
        below.header.link_layer_type = LinkLayerType::Ether;
        below.attributes = vec![
            LinkAttribute::IfName("eth0".into()),
            LinkAttribute::Mtu(9000),
            LinkAttribute::Xdp(vec![
                LinkXdp::ProgId(42),
                LinkXdp::DrvProgId(42),
                LinkXdp::SkbProgId(0),
            ]),
        ];
        let mut vlan = LinkMessage::default();
        vlan.header.index = 8;
        vlan.attributes = vec![
            LinkAttribute::IfName("eth0.5".into()),
            LinkAttribute::Link(7),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan)]),
        ];
        let links = from_messages(&[vlan, below]);
        let eth0 = &links["eth0"];
        assert_eq!((eth0.index, eth0.xdp.as_slice()), (7, &[42][..]));
        assert_eq!(
            eth0.facts,
            LinkFacts { up: true, ethernet: true, mtu: 9000, vlans: vec!["eth0.5".into()] }
        );
        assert!(!links["eth0.5"].facts.up);
    }

    #[test]
    fn filters_of_others_are_named_and_weirs_own_is_not() {
        let filter = |minor: u16, kind: &str, name: Option<&str>| {
            let mut message = TcMessage::default();
            message.header.handle = TcHandle { major: 0, minor };
            message.attributes.push(TcAttribute::Kind(kind.into()));
            if let Some(name) = name {
                let option = TcOption::Bpf(TcFilterBpfOption::ProgName(name.into()));
                message.attributes.push(TcAttribute::Options(vec![option]));
            }
            message
        };
        let messages = [
            filter(0, "bpf", None),
            filter(1, "bpf", Some("cil_to_netdev")),
            filter(1, "bpf", Some("weir_egress")),
            filter(2, "bpf", None),
            filter(1, "flower", None),
            filter(2, "flower", None),
        ];
        assert_eq!(
            filter_names("clsact egress", &messages),
            ["clsact egress: cil_to_netdev", "clsact egress: bpf", "clsact egress: flower"]
        );
    }
}
