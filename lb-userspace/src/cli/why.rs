//! `weir vips --why`: who announces a VIP and why that node. Pure.

use std::net::IpAddr;

use serde::Serialize;

use super::{
    output::{View, span, table},
    snapshot::Account,
};
use crate::report::status::{AgentStatus, VipStatus};

/// A takeover is over long before; what lasts longer wants somebody to look.
const LASTING_SECONDS: u64 = 15;

#[derive(Debug, Serialize)]
pub struct Why {
    #[serde(flatten)]
    account: Account,
    /// As in `weir members`; then what is said here may be old.
    isolated: bool,
    vips: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    vip: VipStatus,
    /// In sentences: who announces it and why that one.
    summary: String,
    /// What to do about it; null: nothing.
    fix: Option<String>,
}

impl Why {
    /// Of one VIP, or of all.
    pub fn new(account: Account, agent: &AgentStatus, only: Option<IpAddr>) -> Self {
        let wanted = |vip: &&VipStatus| only.is_none_or(|only| vip.address == only);
        let row = |vip: &VipStatus| Row {
            vip: vip.clone(),
            summary: format!("{} {}", announced(vip), elected(vip)),
            fix: fix(vip),
        };
        let vips = agent.vips.iter().filter(wanted).map(row).collect();
        Self { account, isolated: agent.isolated, vips }
    }

    /// No such VIP.
    pub fn is_empty(&self) -> bool {
        self.vips.is_empty()
    }
}

fn announced(vip: &VipStatus) -> String {
    let since = span(vip.for_seconds.saturating_mul(1000));
    match &vip.announced_by[..] {
        [] => format!("nobody announces it, for {since}."),
        [node] => format!("{node} announces it, for {since}."),
        nodes => format!(
            "{} announce it at once, for {since}; each forwards rightly, and all but one give way.",
            nodes.join(" and ")
        ),
    }
}

fn elected(vip: &VipStatus) -> String {
    let Some(elected) = &vip.elected else {
        return "No node may: all are excluded.".into();
    };
    let standing = vip.candidates.iter().find(|it| it.node == *elected);
    let standing = standing.map_or("a candidate", |it| it.standing.as_str());
    let equals = vip.candidates.iter().filter(|it| it.standing == standing).count();
    let reason = match equals {
        0 | 1 => format!("no other is better than {standing}"),
        _ => format!(
            "of the nodes that are {standing} it comes first by a hash of VIP and node, which all \
             nodes compute alike"
        ),
    };
    match vip.announced_by.contains(elected) {
        true => format!("It is elected: {reason}."),
        false => format!("{elected} is elected and takes it: {reason}."),
    }
}

fn fix(vip: &VipStatus) -> Option<String> {
    let lasting = vip.for_seconds >= LASTING_SECONDS;
    match (&vip.elected, &vip.announced_by[..]) {
        (None, _) => Some(
            "bring one of these nodes back, or allow one: labels in the Frontend's \
             spec.announce.nodeSelector, interfaces in spec.announce.interfaces of Frontend and Agent, \
             and with externalTrafficPolicy Local a healthy backend on the node"
                .into(),
        ),
        (Some(elected), by) if lasting && !by.contains(elected) => Some(format!(
            "this lasts too long: see `weir status` on {elected}; its data plane must hold the \
             frontend, and an uplink that may announce it must be up"
        )),
        (Some(_), [_, _, ..]) if lasting => Some(
            "this lasts too long: the nodes may not hear each other; see `weir members` on each"
                .into(),
        ),
        _ => None,
    }
}

impl Row {
    fn text(&self) -> String {
        let vip = &self.vip;
        let mut text = format!("\n{}: {}\n", vip.address, self.summary);
        let candidates = vip.candidates.iter().map(|candidate| {
            let announces = vip.announced_by.contains(&candidate.node);
            [
                candidate.node.clone(),
                candidate.standing.clone(),
                if announces { "yes" } else { "no" }.into(),
            ]
        });
        let excluded = vip.excluded.iter().flat_map(|(reason, nodes)| {
            nodes.iter().map(move |node| [node.clone(), format!("excluded: {reason}"), "no".into()])
        });
        text += &table(["NODE", "STANDING", "ANNOUNCES"], candidates.chain(excluded));
        if let Some(fix) = &self.fix {
            text += &format!("fix: {fix}\n");
        }
        text
    }
}

impl View for Why {
    const SCHEMA: &'static str = "weir.vips-why/v1";

    fn text(&self) -> String {
        let mut text = self.account.text();
        if self.isolated {
            text += "ISOLATED: this node hears no other and not its gateway; others may see it differently\n";
        }
        if self.vips.is_empty() {
            text += "no VIPs\n";
        }
        text + &self.vips.iter().map(Row::text).collect::<String>()
    }
}
