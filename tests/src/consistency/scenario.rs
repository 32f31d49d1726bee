//! What happens to a pool: a list of sets of backends, each in force from one step to the next.

/// Number of a backend: its place among all that a scenario ever has.
pub type Number = u16;

/// A pool's story.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    pub name: String,
    /// Sets of owners, sorted: the one at the beginning, then one a step.
    pub sets: Vec<Vec<Number>>,
    /// Greatest share of broken flows that meets the goal where views differ; it is 0 where they
    /// are equal.
    pub hard_goal: f64,
}

impl Scenario {
    fn new(name: impl Into<String>, sets: Vec<Vec<Number>>, hard_goal: f64) -> Self {
        Self { name: name.into(), sets, hard_goal }
    }

    /// All backends that it ever has.
    pub fn backends(&self) -> Number {
        self.sets.iter().flatten().max().map_or(0, |last| last + 1)
    }

    /// Those that the pool is measured by, in the order in which they are printed.
    pub fn all() -> Vec<Self> {
        let upto = |n: Number| (0..n).collect::<Vec<_>>();
        let steps = |sizes: &mut dyn Iterator<Item = Number>| sizes.map(upto).collect::<Vec<_>>();
        vec![
            Self::new("add 1", vec![upto(10), upto(11)], 0.0),
            Self::new("drain 1", vec![upto(10), upto(9)], 0.0),
            Self::new("flap x4", flap(10, 4), 0.0),
            Self::new("10 to 20, one by one", steps(&mut (10..=20)), 0.0),
            Self::new("10 to 20 at once", vec![upto(10), upto(20)], 0.001),
            Self::new("20 to 10, one by one", steps(&mut (10..=20).rev()), 0.0),
            Self::new("20 to 10 at once", vec![upto(20), upto(10)], 0.0),
            Self::new("rolling 10", rolling(10), 0.0),
            Self::new("rolling 12", rolling(12), 0.0),
            Self::new("rolling 100", rolling(100), 0.0001),
            Self::new("3 to 30 to 3", steps(&mut (3..=30).chain((3..30).rev())), 0.0005),
        ]
    }
}

/// One backend leaves and returns, so many times.
fn flap(backends: Number, times: usize) -> Vec<Vec<Number>> {
    let full: Vec<Number> = (0..backends).collect();
    let without: Vec<Number> = full.iter().copied().filter(|it| *it != backends / 2).collect();
    let rounds = (0..times).flat_map(|_| [without.clone(), full.clone()]);
    [full.clone()].into_iter().chain(rounds).collect()
}

/// Each backend in turn is replaced by a new one.
fn rolling(backends: Number) -> Vec<Vec<Number>> {
    (0..=backends).map(|step| (step..step + backends).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_end_as_their_names_say() {
        for scenario in Scenario::all() {
            let (first, last) = (&scenario.sets[0], &scenario.sets[scenario.sets.len() - 1]);
            let ends = (first.len(), last.len(), scenario.sets.len() - 1);
            let wanted = match scenario.name.as_str() {
                "add 1" => (10, 11, 1),
                "drain 1" => (10, 9, 1),
                "flap x4" => (10, 10, 8),
                "10 to 20, one by one" => (10, 20, 10),
                "10 to 20 at once" => (10, 20, 1),
                "20 to 10, one by one" => (20, 10, 10),
                "20 to 10 at once" => (20, 10, 1),
                "rolling 10" => (10, 10, 10),
                "rolling 12" => (12, 12, 12),
                "rolling 100" => (100, 100, 100),
                "3 to 30 to 3" => (3, 3, 54),
                other => panic!("{other} is new here"),
            };
            assert_eq!(ends, wanted, "{}", scenario.name);
            assert!(scenario.sets.windows(2).all(|pair| pair[0] != pair[1]), "{}", scenario.name);
        }
    }
}
