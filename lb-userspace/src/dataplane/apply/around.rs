//! Nodes, VIPs and what else depends on this node's surroundings.

use std::{collections::BTreeSet, net::IpAddr};

use lb_common::{
    abi::map,
    frontend::{Vip, vip_flags},
    globals::state,
    hop::{Hop, Member, Uplinks},
    net::Addr,
    wire::geneve::{OVERHEAD_V4, OVERHEAD_V6},
};

use super::{ApplyError, Work};
use crate::{
    dataplane::store::{Step, Store, WriteError},
    plan::DesiredNode,
};

/// Headers of TCP over IPv4 and IPv6, without options (RFC 9293 3.7.1).
const TCP_V4: u32 = 40;
const TCP_V6: u32 = 60;

impl<S: Store> Work<'_, S> {
    /// Index and way of every configured node, then its addresses as members.
    pub(super) fn put_nodes(&mut self) -> Result<(), ApplyError> {
        let wanted = self.desired;
        for (name, node) in &wanted.nodes {
            let index = match *name == self.node {
                true => 0,
                false => match self.node_index(name, node) {
                    Some(index) => {
                        let hop = self.around.hops.get(name).copied().unwrap_or_default();
                        self.put_hop(index, hop)?;
                        index
                    }
                    None => {
                        let capacity = self.held.hops.len() as u32;
                        let full = WriteError::Full { map: map::HOPS, capacity };
                        self.starve(format!("Node/{name}"), &full);
                        continue;
                    }
                },
            };
            for address in &node.addresses {
                let addr = Addr::from(*address);
                if self.held.members.get(&addr) == Some(&index) {
                    continue;
                }
                match self
                    .store
                    .write(Step::Member(addr, Member { node: index, ..Member::default() }))
                {
                    Ok(()) => drop(self.held.members.insert(addr, index)),
                    Err(full @ WriteError::Full { .. }) => {
                        self.starve(format!("Node/{name}"), &full);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// The index of another node: the one it has, also by its addresses as read back, or a new one.
    fn node_index(&mut self, name: &str, node: &DesiredNode) -> Option<u32> {
        if let Some(index) = self.held.nodes.get(name) {
            return Some(*index);
        }
        let known = node.addresses.iter().find_map(|address| {
            let index = *self.held.members.get(&Addr::from(*address))?;
            let taken = index == 0 || self.held.nodes.values().any(|other| *other == index);
            (!taken).then_some(index)
        });
        let index = match known {
            Some(index) => index,
            None => {
                while self.held.node_indices.free() == 0 && self.reclaim() {}
                self.held.node_indices.take()?
            }
        };
        self.held.nodes.insert(name.to_owned(), index);
        Some(index)
    }

    fn put_hop(&mut self, index: u32, hop: Hop) -> Result<(), ApplyError> {
        if let Some(held) = self.held.hops.get_mut(index as usize)
            && *held != hop
        {
            self.store.write(Step::Hop(index, &hop))?;
            *held = hop;
        }
        Ok(())
    }

    /// Members and nodes that are configured no more. Their backends have gone before.
    pub(super) fn remove_nodes(&mut self) -> Result<(), ApplyError> {
        let addresses = self.desired.nodes.values().flat_map(|node| &node.addresses);
        let wanted: BTreeSet<Addr> = addresses.map(|address| Addr::from(*address)).collect();
        let gone = self.held.members.keys().filter(|addr| !wanted.contains(addr));
        let mut indices = BTreeSet::new();
        for addr in gone.copied().collect::<Vec<_>>() {
            self.store.write(Step::NoMember(addr))?;
            indices.extend(self.held.members.remove(&addr));
        }
        let nodes = &self.desired.nodes;
        let gone = self.held.nodes.iter().filter(|(name, _)| !nodes.contains_key(*name));
        indices.extend(gone.map(|(_, index)| *index));
        self.held.nodes.retain(|name, _| nodes.contains_key(name));
        let kept: BTreeSet<u32> = self.held.nodes.values().copied().chain([0]).collect();
        for index in indices.difference(&kept) {
            self.put_hop(*index, Hop::default())?;
            self.freed.nodes.push(*index);
        }
        Ok(())
    }

    /// VIPs that nobody wants, before their frontends go.
    pub(super) fn remove_vips(&mut self) -> Result<(), ApplyError> {
        let gone = self.held.vips.keys().filter(|vip| !self.desired.vips.contains_key(vip));
        for vip in gone.copied().collect::<Vec<_>>() {
            self.store.write(Step::NoVip(vip.into()))?;
            self.held.vips.remove(&vip);
        }
        self.put_filter(self.held.wanted_filter(std::iter::empty()))
    }

    /// VIPs, after their frontends have come: the filter's bits first.
    pub(super) fn put_vips(&mut self) -> Result<(), ApplyError> {
        let wanted = self.desired;
        self.put_filter(self.held.wanted_filter(wanted.vips.keys().copied()))?;
        for (address, desired) in &wanted.vips {
            let vip = Vip {
                announced_on: self.around.announced.get(address).copied().unwrap_or_default(),
                flags: if desired.echo { vip_flags::ECHO } else { 0 },
            };
            if self.held.vips.get(address) == Some(&vip) {
                continue;
            }
            match self.store.write(Step::Vip((*address).into(), vip)) {
                Ok(()) => drop(self.held.vips.insert(*address, vip)),
                Err(full @ WriteError::Full { .. }) => {
                    let object = self.object_of(*address);
                    self.starve(object, &full);
                }
                Err(error) => return Err(error.into()),
            }
        }
        // What others took is now either announced again or not by the map of VIPs itself.
        for vip in self.store.yields()? {
            self.store.write(Step::NoYield(vip))?;
        }
        Ok(())
    }

    fn object_of(&self, vip: IpAddr) -> String {
        let frontend = self.desired.frontends.iter().find(|(key, _)| key.address == vip);
        frontend
            .map_or_else(|| format!("VIP/{vip}"), |(_, found)| format!("Frontend/{}", found.object))
    }

    fn put_filter(&mut self, wanted: Vec<u64>) -> Result<(), ApplyError> {
        for (index, (held, word)) in (0..).zip(self.held.filter.iter_mut().zip(wanted)) {
            if *held != word {
                self.store.write(Step::Filter(index, word))?;
                *held = word;
            }
        }
        Ok(())
    }

    /// What the programs need to know of this node.
    pub(super) fn put_state(&mut self) -> Result<(), ApplyError> {
        let mut uplinks = Uplinks::default();
        for (place, uplink) in uplinks.list.iter_mut().zip(&self.around.uplinks) {
            *place = *uplink;
        }
        if self.held.uplinks != Some(uplinks) {
            self.store.write(Step::Uplinks(&uplinks))?;
            self.held.uplinks = Some(uplinks);
        }
        let room = self.tunnel_room();
        let mss = |headers| room.map_or(0, |room| u64::from(room.saturating_sub(headers)));
        for (index, value) in [(state::MSS_V4, mss(TCP_V4)), (state::MSS_V6, mss(TCP_V6))] {
            if let Some(held) = self.held.state.get_mut(index as usize)
                && *held != value
            {
                self.store.write(Step::State(index, value))?;
                *held = value;
            }
        }
        Ok(())
    }

    /// Bytes of inner packet that fit the tunnel between this node and any other; none without
    /// others. What a forwarder's own way carries is not known here: it is taken to be like ours.
    fn tunnel_room(&self) -> Option<u32> {
        let others = self.desired.nodes.iter().filter(|(name, _)| *name != self.node);
        let room = |(name, node): (&String, &DesiredNode)| {
            let hop = self.around.hops.get(name).filter(|hop| hop.ifindex != 0);
            let v4 = match hop {
                Some(hop) => hop.source.is_v4(),
                None => node.addresses.first().is_some_and(IpAddr::is_ipv4),
            };
            let mtus = [hop.map_or(0, |hop| hop.mtu), self.around.mtu];
            let mtu = mtus.into_iter().filter(|mtu| *mtu != 0).min()?;
            Some(mtu.saturating_sub(if v4 { OVERHEAD_V4 } else { OVERHEAD_V6 }))
        };
        others.filter_map(room).min()
    }
}
