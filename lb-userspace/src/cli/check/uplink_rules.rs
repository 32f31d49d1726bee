//! Judges one uplink. Pure.

use lb_common::abi::program;

use super::{
    facts::{Facts, Link, LinkFacts, Uplink},
    rules::{Finding, Level},
};

/// IP and TCP headers without options, for each family.
const HEADERS_V4: u32 = 40;
const HEADERS_V6: u32 = 60;

/// What clients and servers on plain Ethernet send.
const USUAL_MTU: u32 = 1500;

/// Every link must carry IPv6 packets of this size (RFC 8200 5), so the tunnel must, too.
const LEAST_MTU: u32 = 1280;

/// Drivers that run XDP on the receive path of the driver itself (kernel sources, 6.12).
const NATIVE: [&str; 31] = [
    "atlantic",
    "bnxt_en",
    "bonding",
    "cpsw",
    "dpaa2-eth",
    "ena",
    "fec",
    "fsl_dpa",
    "fsl_enetc",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "mtk_soc_eth",
    "nfp",
    "qede",
    "sfc",
    "stmmac",
    "tsnep",
    "tun",
    "veth",
    "virtio_net",
];

/// All findings about one uplink; only why it can be none where it can be none.
pub fn evaluate(uplink: &Uplink, facts: &Facts) -> Vec<Finding> {
    let name = &uplink.name;
    let unusable = |message, fix| vec![Finding::bad("link", Level::Fail, message, fix)];
    let findings = match &uplink.link {
        Link::Absent => {
            unusable("there is no such interface", "name one of those that `ip link` lists")
        }
        Link::Present(link) if !link.ethernet => unusable(
            "not an Ethernet interface: next hops need MAC addresses",
            "name the Ethernet interface below it",
        ),
        link => {
            let mut findings = match link {
                Link::Present(link) => {
                    vec![state(name, link), mtu(name, link, facts.overhead), vlan(uplink, link)]
                }
                _ => vec![Finding::unknown("link", "the list of interfaces")],
            };
            let alone = facts.uplinks.len() == 1;
            findings.extend([driver(uplink), rp_filter(uplink, alone), xdp(uplink), tc(uplink)]);
            findings
        }
    };
    findings.into_iter().map(|finding| finding.about(name)).collect()
}

fn state(name: &str, link: &LinkFacts) -> Finding {
    const CHECK: &str = "link";
    if !link.up {
        return Finding::bad(CHECK, Level::Fail, "is down", format!("ip link set {name} up"));
    }
    Finding::ok(CHECK, "is up")
}

fn mtu(name: &str, link: &LinkFacts, overhead: u32) -> Finding {
    const CHECK: &str = "mtu";
    let (mtu, full) = (link.mtu, USUAL_MTU + overhead);
    let fix = format!("ip link set {name} mtu {full} (and on the switches between the nodes)");
    if mtu >= full {
        return Finding::ok(CHECK, format!("{mtu}: packets of {USUAL_MTU} bytes fit the tunnel"));
    }
    let inner = mtu.saturating_sub(overhead);
    if inner < LEAST_MTU {
        let message = format!("{mtu} leaves {inner} bytes in the tunnel, IPv6 needs {LEAST_MTU}");
        return Finding::bad(CHECK, Level::Fail, message, fix);
    }
    let (v4, v6) = (inner - HEADERS_V4, inner - HEADERS_V6);
    let message = format!(
        "{mtu} is less than {full}: TCP's MSS is clamped to {v4} (IPv4) and {v6} (IPv6), larger \
         datagrams are told to shrink"
    );
    Finding::bad(CHECK, Level::Warn, message, fix)
}

fn vlan(uplink: &Uplink, link: &LinkFacts) -> Finding {
    const CHECK: &str = "vlan";
    if link.vlans.is_empty() {
        return Finding::ok(CHECK, "no VLANs on it");
    }
    let vlans = link.vlans.join(", ");
    match uplink.strips_vlan {
        None => Finding::unknown(CHECK, "rx-vlan-offload"),
        Some(false) => Finding::ok(CHECK, format!("tags stay on for {vlans}")),
        Some(true) => Finding::bad(
            CHECK,
            Level::Warn,
            format!("takes VLAN tags off before XDP sees them; packets of {vlans} look untagged"),
            format!("ethtool -K {} rxvlan off", uplink.name),
        ),
    }
}

fn driver(uplink: &Uplink) -> Finding {
    const CHECK: &str = "driver";
    match uplink.driver.as_deref() {
        None => Finding::unknown(CHECK, "the driver's name"),
        Some(driver) if NATIVE.contains(&driver) => {
            Finding::ok(CHECK, format!("{driver}: native XDP expected"))
        }
        Some(driver) => Finding::bad(
            CHECK,
            Level::Warn,
            format!("{driver} is not known for native XDP: generic mode, a good deal slower"),
            "none needed; name the physical interface if this one is virtual",
        ),
    }
}

fn rp_filter(uplink: &Uplink, alone: bool) -> Finding {
    const CHECK: &str = "rp_filter";
    let name = &uplink.name;
    match uplink.rp_filter {
        None => Finding::unknown(CHECK, &format!("net.ipv4.conf.{name}.rp_filter")),
        Some(1) => Finding::bad(
            CHECK,
            // With one uplink the way back to a client is nearly always the way it came.
            if alone { Level::Warn } else { Level::Fail },
            "1 (strict): a client's packet is dropped where this is not the route back to the client",
            format!(
                "sysctl -w net.ipv4.conf.{name}.rp_filter=2 (the larger of this and \
                 net.ipv4.conf.all.rp_filter counts)"
            ),
        ),
        Some(value) => Finding::ok(CHECK, format!("{value}")),
    }
}

fn xdp(uplink: &Uplink) -> Finding {
    const CHECK: &str = "xdp";
    let Some(programs) = &uplink.xdp else { return Finding::unknown(CHECK, "the XDP hook") };
    let others: Vec<_> =
        programs.iter().filter(|name| *name != program::INGRESS).map(String::as_str).collect();
    match (programs.is_empty(), others.is_empty()) {
        (true, _) => Finding::ok(CHECK, "the hook is free"),
        (false, true) => Finding::ok(CHECK, "weir's program is there"),
        (false, false) => Finding::bad(
            CHECK,
            Level::Fail,
            format!("taken by {}: weir never displaces another's program", others.join(", ")),
            format!("stop its owner, or ip link set {} xdp off", uplink.name),
        ),
    }
}

fn tc(uplink: &Uplink) -> Finding {
    const CHECK: &str = "tc";
    match uplink.tc.as_deref() {
        None => Finding::unknown(CHECK, "the tc hooks"),
        Some([]) => Finding::ok(CHECK, "no programs or filters of others"),
        Some(others) => Finding::bad(
            CHECK,
            Level::Warn,
            format!("others are there: {}; weir's egress runs behind them", others.join(", ")),
            "none needed, unless one of them ends the chain (TC_ACT_OK, TCX_PASS) for answers",
        ),
    }
}
