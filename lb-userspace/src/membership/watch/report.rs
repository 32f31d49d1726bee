//! What a watcher says of a node to all others: the value of a `REPORT` entry.

use serde::{Deserialize, Serialize};

/// What probes of one node's data plane found.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Finding {
    /// It answers, or nobody here looks.
    #[default]
    Answers,
    /// Silent for `fall` rounds.
    Silent,
    /// It answers; its agent's heartbeat is older than a second.
    Mute,
    /// Its agent is silent for so long that its VIPs move.
    MuteLong,
    /// Silent too, but it never answered this member: it may not know this member as a sender. That
    /// accuses nobody, and speaks for nobody.
    Unheard,
}

impl Finding {
    pub fn is_unreached(self) -> bool {
        matches!(self, Self::Silent | Self::Unheard)
    }

    pub fn is_mute(self) -> bool {
        matches!(self, Self::Mute | Self::MuteLong)
    }
}

/// One member's word on one node. No entry means the default.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Report {
    pub finding: Finding,
    /// Version of the node's `CARD` when this member took its VIPs from it: that card and older ones
    /// are void. 0: none is.
    pub void: u64,
}

impl Report {
    /// As it travels; None where there is nothing to say.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let bytes = postcard::to_allocvec(self).expect("fixed fields always encode");
        (*self != Self::default()).then_some(bytes)
    }

    /// Reads what another member sent. What cannot be read says nothing.
    pub fn decode(bytes: &[u8]) -> Self {
        postcard::from_bytes(bytes).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Agents of different builds must understand each other.
    #[test]
    fn encoding_is_golden_and_silence_costs_two_bytes() {
        let report = |finding, void| Report { finding, void };
        assert_eq!(report(Finding::Silent, 0).encode(), Some(vec![1, 0]));
        assert_eq!(report(Finding::MuteLong, 300).encode(), Some(vec![3, 0xac, 2]));
        assert_eq!(report(Finding::Answers, 0).encode(), None);
    }

    #[test]
    fn every_report_is_read_back_and_rubbish_says_nothing() {
        for finding in [Finding::Answers, Finding::Silent, Finding::Mute, Finding::Unheard] {
            let report = Report { finding, void: u64::MAX };
            assert_eq!(Report::decode(&report.encode().unwrap()), report);
        }
        assert_eq!(Report::decode(&[]), Report::default());
        assert_eq!(Report::decode(&[9, 9, 9]), Report::default());
    }
}
