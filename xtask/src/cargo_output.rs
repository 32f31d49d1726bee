//! Reads what `cargo test` says about how many tests ran.

use std::ops::AddAssign;

/// Tests by result, summed over test binaries.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
}

impl Counts {
    /// The counts of a line like `test result: ok. 3 passed; 0 failed; 1 ignored; …`; `None`: another line.
    pub fn from_line(line: &str) -> Option<Self> {
        let (_, counts) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
        let count = |what: &str| {
            counts.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok())
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
        })
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted_whether_they_passed_or_failed() {
        let ok = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.08s";
        assert_eq!(Counts::from_line(ok), Some(Counts { passed: 12, failed: 0, ignored: 1 }));
        let failed =
            "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(Counts::from_line(failed), Some(Counts { passed: 2, failed: 3, ignored: 0 }));
    }

    #[test]
    fn other_lines_are_not() {
        for line in
            ["", "running 3 tests", "test a::b ... ok", "test result: ok.", "12 passed, 0 failed"]
        {
            assert_eq!(Counts::from_line(line), None, "{line:?}");
        }
    }
}
