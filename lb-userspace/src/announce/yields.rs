//! Tells the data planes of nodes whose agents are silent to leave alone the VIPs that moved here.
//!
//! The data plane believes it only while its own agent is silent, and only as long as it is repeated: see
//! `lb_common::abi::YIELD_LIFE`.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::{
    abi::TUNNEL_VERSION,
    net::Addr,
    wire::geneve::{
        CLASS, CRITICAL, Data, DataHeader, Geneve, OPTION_LENGTH, OptionHead, VERSION_LENGTH, kind,
        vni_word,
    },
};
use tokio::{
    net::UdpSocket,
    sync::watch,
    time::{sleep, timeout_at},
};

use super::Uplink;
use crate::model::{Life, Members};
use crate::watched::Watched as _;

/// Between two yields of the same VIP to the same node; a few may be lost before the first one ends.
pub const REPEAT: Duration = Duration::from_secs(1);

/// Shortest time between two rounds, when views change often.
const REST: Duration = Duration::from_millis(100);

/// Yields of one round; the next round goes on where it stopped. Ten rounds fit into a yield's life.
pub const MOST: usize = 1024;

/// What must be known to send.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    pub tunnel_port: u16,
    pub vni: u32,
    pub seed_tag: [u8; 8],
}

/// Addresses of all nodes by name.
type Nodes = Arc<BTreeMap<String, Vec<IpAddr>>>;
type Announced = Arc<BTreeMap<IpAddr, Uplink>>;

/// Sends what is due until a sender of its inputs is gone. What cannot be sent is tried again a round
/// later.
pub async fn run(
    settings: Settings,
    nodes: watch::Receiver<Nodes>,
    mut announced: watch::Receiver<Announced>,
    mut members: watch::Receiver<Arc<Members>>,
) {
    let mut round = 0;
    loop {
        let next = Instant::now() + REPEAT;
        let due = due(&members.copy_and_update(), &announced.copy_and_update());
        if !due.is_empty() {
            let nodes = nodes.copy();
            let part = part(&due, round).map(|(node, vip)| (node.as_str(), *vip));
            if let Err(error) = send(&settings, &nodes, part).await {
                tracing::debug!(%error, "yields not sent");
            }
            round += 1;
        }
        sleep(REST).await;
        let changed = async {
            tokio::select! {
                result = members.changed() => result,
                result = announced.changed() => result,
            }
        };
        if let Ok(Err(_)) = timeout_at(next.into(), changed).await {
            return;
        }
    }
}

/// Mute nodes, and the VIPs that moved from them to this node.
fn due(members: &Members, announced: &BTreeMap<IpAddr, Uplink>) -> Vec<(String, IpAddr)> {
    let mute = members.nodes.iter().filter(|(name, member)| {
        **name != members.own && member.life == Life::Mute && member.mute_long
    });
    let taken = mute.flat_map(|(name, member)| {
        let here = member.announces.iter().filter(|vip| announced.contains_key(vip));
        here.map(|vip| (name.clone(), *vip))
    });
    taken.collect()
}

/// At most [`MOST`], each round others.
fn part(due: &[(String, IpAddr)], round: usize) -> impl Iterator<Item = &(String, IpAddr)> {
    let first = round.wrapping_mul(MOST) % due.len().max(1);
    due.iter().cycle().skip(first).take(MOST.min(due.len()))
}

/// From this node's own addresses: only members are believed.
async fn send(
    settings: &Settings,
    nodes: &BTreeMap<String, Vec<IpAddr>>,
    due: impl Iterator<Item = (&str, IpAddr)>,
) -> io::Result<()> {
    let own = nodes.get(&settings.node).map_or(&[][..], Vec::as_slice);
    let mut sockets = Vec::new();
    for address in own {
        sockets.push((address.is_ipv4(), UdpSocket::bind(SocketAddr::new(*address, 0)).await?));
    }
    for (node, vip) in due {
        let message = message(settings, vip);
        for address in nodes.get(node).into_iter().flatten() {
            let to = SocketAddr::new(*address, settings.tunnel_port);
            if let Some((_, socket)) = sockets.iter().find(|(v4, _)| *v4 == address.is_ipv4()) {
                socket.send_to(&message, to).await?;
            }
        }
    }
    Ok(())
}

/// UDP payload of the yield of a VIP.
fn message(settings: &Settings, vip: IpAddr) -> [u8; size_of::<DataHeader>()] {
    let base = Geneve {
        version_length: VERSION_LENGTH,
        flags: CRITICAL,
        protocol: 0,
        vni: vni_word(settings.vni),
    };
    bytemuck::cast(DataHeader {
        base,
        option: OptionHead { class: CLASS, kind: kind::YIELD, length: OPTION_LENGTH },
        data: Data {
            version: TUNNEL_VERSION,
            seed_tag: bytemuck::cast(settings.seed_tag),
            backend: Addr::from(vip).into(),
            ..Data::default()
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MemberState;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn settings() -> Settings {
        let seed_tag = *b"seed-tag";
        Settings { node: "a".into(), tunnel_port: 6084, vni: 0x77_6569, seed_tag }
    }

    #[test]
    fn a_yield_has_the_bytes_of_the_tunnel_format() {
        let mut want = vec![12, 0x40, 0, 0, 0x77, 0x65, 0x69, 0, 0xff, 0x01, 0x84, 11, 1, 0, 0, 0];
        want.extend(b"seed-tag");
        want.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
        want.extend([0; 16]);
        assert_eq!(message(&settings(), ip("192.0.2.1"))[..], want);
        assert_eq!(message(&settings(), ip("2001:db8::1"))[24..28], [0x20, 0x01, 0x0d, 0xb8]);
    }

    #[test]
    fn only_nodes_mute_for_long_yield_what_moved_here() {
        let vips = ["192.0.2.1", "192.0.2.2"].map(ip);
        let uplink = Uplink { name: "eth0".into(), ifindex: 2, mac: [2; 6] };
        let announced = BTreeMap::from([(vips[0], uplink)]);
        let state = |life, mute_long| MemberState {
            life,
            mute_long,
            announces: vips.into(),
            ..MemberState::default()
        };
        let nodes = [
            ("a", state(Life::Mute, true)),
            ("b", state(Life::Mute, true)),
            ("c", state(Life::Mute, false)),
            ("d", state(Life::Alive, false)),
            ("e", state(Life::Dead, true)),
        ];
        let nodes = nodes.map(|(name, state)| (name.to_owned(), state)).into();
        let members = Members { own: "a".into(), nodes, ..Members::default() };
        assert_eq!(due(&members, &announced), [("b".to_owned(), vips[0])]);
    }

    #[test]
    fn rounds_are_bounded_and_reach_all_in_turn() {
        let due: Vec<_> =
            (0..2500u32).map(|i| (String::new(), IpAddr::V4((0x0a00_0000 + i).into()))).collect();
        let rounds: Vec<Vec<_>> = (0..3).map(|round| part(&due, round).collect()).collect();
        assert!(rounds.iter().all(|round| round.len() == MOST));
        let all: std::collections::BTreeSet<_> = rounds.into_iter().flatten().collect();
        assert_eq!(all.len(), 2500);
        assert_eq!(part(&due[..3], 7).count(), 3);
    }
}
