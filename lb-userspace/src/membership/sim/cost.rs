//! What membership costs each node.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Sim, Traffic};

/// What happens while costs are counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Load {
    Idle,
    /// One node dies and another returns a minute.
    DeathEachMinute,
}

/// Per node and virtual second, the mean of all nodes that live.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    pub members: usize,
    pub load: Load,
    pub bytes: f64,
    /// Of the node that sent most.
    pub most_bytes: f64,
    pub probes: f64,
    pub answers: f64,
    pub datagrams: f64,
    /// Seconds of this machine's processor, the network's simulation included.
    pub processor: f64,
}

/// A cluster runs for `settle`, then is counted for `time` of virtual time.
pub fn measure(members: usize, load: Load, settle: Duration, time: Duration) -> Cost {
    let mut sim = Sim::new(members, 1);
    (0..members).for_each(|site| sim.power_on(site));
    sim.run(settle);
    let before: Vec<Traffic> = (0..members).map(|site| sim.traffic(site)).collect();
    let begin = Instant::now();
    match load {
        Load::Idle => sim.run(time),
        Load::DeathEachMinute => {
            sim.run(time / 2);
            sim.power_off(0);
            sim.run(time - time / 2);
        }
    }
    let processor = begin.elapsed().as_secs_f64();
    let seconds = time.as_secs_f64();
    let first = usize::from(load == Load::DeathEachMinute);
    let rates = |of: fn(&Traffic) -> u64| -> Vec<f64> {
        let rate = |site: usize| (of(&sim.traffic(site)) - of(&before[site])) as f64 / seconds;
        (first..members).map(rate).collect()
    };
    let mean = |of| rates(of).iter().sum::<f64>() / (members - first) as f64;
    Cost {
        members,
        load,
        bytes: mean(|it| it.bytes),
        most_bytes: rates(|it| it.bytes).into_iter().fold(0.0, f64::max),
        probes: mean(|it| it.probes),
        answers: mean(|it| it.answers),
        datagrams: mean(|it| it.datagrams),
        processor: processor / seconds / members as f64,
    }
}
