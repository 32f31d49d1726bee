//! `weir members`: all nodes as this one sees them. Pure.

use serde::Serialize;

use super::{
    output::{View, or_dash, section, span, table},
    snapshot::Account,
};
use crate::{
    model::{Life, Problem},
    report::status::{AgentStatus, MemberStatus},
};

#[derive(Debug, Serialize)]
pub struct Members {
    #[serde(flatten)]
    account: Account,
    /// Hears nobody, nor does its gateway answer.
    isolated: bool,
    members: Vec<Row>,
    /// In what nodes do not fit together.
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    member: MemberStatus,
    /// How many VIPs it announces.
    announces: usize,
    /// It is the node that looks.
    own: bool,
    /// Version, layout, tunnel or seed are not those of the node that looks.
    skewed: bool,
}

impl Members {
    pub fn new(account: Account, agent: &AgentStatus) -> Self {
        let of_nodes = agent.problems.iter().filter(|it| it.object.starts_with("Node/"));
        let problems: Vec<_> = of_nodes.cloned().collect();
        let announces =
            |node: &String| agent.vips.iter().filter(|vip| vip.announced_by.contains(node)).count();
        let row = |member: &MemberStatus| Row {
            announces: announces(&member.node),
            own: member.node == agent.node,
            skewed: problems.iter().any(|it| it.object == format!("Node/{}", member.node)),
            member: member.clone(),
        };
        let members = agent.members.iter().map(row).collect();
        Self { account, isolated: agent.isolated, members, problems }
    }
}

/// In a word, as in JSON.
pub fn life_word(life: Life) -> &'static str {
    match life {
        Life::Unknown => "unknown",
        Life::Alive => "alive",
        Life::Mute => "MUTE",
        Life::Dead => "DEAD",
    }
}

impl Row {
    fn cells(&self) -> [String; 10] {
        let member = &self.member;
        let layout = member.layout.map(|layout| layout.to_string());
        let agent = match (self.own, member.heard) {
            (true, _) => "here",
            (false, true) => "heard",
            (false, false) => "silent",
        };
        let seed = match (member.last_answer_ms, member.seed_differs) {
            (_, true) => "OTHER",
            (None, false) if !self.own => "",
            _ => "same",
        };
        [
            member.node.clone(),
            life_word(member.life).into(),
            agent.into(),
            if member.serves { "yes" } else { "no" }.into(),
            match (member.announcing, self.announces) {
                (false, 0) => "no".into(),
                (false, count) => format!("{count} still"),
                (true, count) => count.to_string(),
            },
            or_dash(member.version.as_deref().unwrap_or_default()),
            or_dash(&layout.unwrap_or_default()),
            or_dash(seed),
            or_dash(&member.heartbeat_ms.map(span).unwrap_or_default()),
            or_dash(&self.notes().join("; ")),
        ]
    }

    fn notes(&self) -> Vec<String> {
        let member = &self.member;
        let note = |holds: bool, text: &str| holds.then(|| text.to_owned());
        let named = |nodes: &[String], text: &str| {
            (!nodes.is_empty()).then(|| format!("{text} {}", nodes.join(", ")))
        };
        let notes = [
            note(self.own, "this node"),
            note(self.skewed, "SKEWED, see below"),
            note(member.drained, "drained from forwarding"),
            note(member.leaving && !member.drained, "leaving"),
            member.held_for_ms.map(|left| format!("held back for {}", span(left))),
            note(member.deaths == 1, "died once"),
            (member.deaths > 1).then(|| format!("died {} times", member.deaths)),
            named(&member.suspected_by, "suspected by"),
            named(&member.unreachable, "does not reach"),
        ];
        notes.into_iter().flatten().collect()
    }
}

impl View for Members {
    const SCHEMA: &'static str = "weir.members/v1";

    fn text(&self) -> String {
        let mut text = self.account.text();
        if self.isolated {
            text += "ISOLATED: the other nodes and the gateway are silent; nothing new is announced here\n";
        }
        text += &table(
            [
                "NODE",
                "STATE",
                "AGENT",
                "SERVES",
                "ANNOUNCES",
                "VERSION",
                "LAYOUT",
                "SEED",
                ">HEARTBEAT",
                "NOTE",
            ],
            self.members.iter().map(Row::cells),
        );
        if !self.problems.is_empty() {
            let row = |it: &Problem| [it.object.clone(), it.message.clone()];
            let rows = self.problems.iter().map(row);
            text += &section("problems", &table(["OBJECT", "PROBLEM"], rows));
        }
        text
    }
}
