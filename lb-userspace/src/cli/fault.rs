//! Errors that name their fix.

use std::fmt;

/// What would mend an error. Put into a chain with `.context(…)` beside the error itself.
#[derive(Debug)]
pub struct Fault {
    /// What cannot be done.
    pub what: String,
    /// What the reader should do about it; a command where there is one.
    pub fix: String,
}

impl Fault {
    pub fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), fix: fix.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Fault {}

/// An error as the user sees it: the chain on one line, and the fix on the next if one is known.
pub fn explain(error: &anyhow::Error) -> String {
    let mut text = String::from("error: ");
    for (depth, cause) in error.chain().enumerate() {
        let cause = cause.to_string();
        // Some errors already tell their cause.
        if depth == 0 {
            text += &cause;
        } else if !text.ends_with(&cause) {
            text += &format!(": {cause}");
        }
    }
    text += "\n";
    if let Some(fault) = error.downcast_ref::<Fault>() {
        text += &format!("  fix: {}\n", fault.fix);
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_fix_is_found_below_and_above_other_context() {
        let io = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let error = Err::<(), _>(io).context(Fault::new("cannot open the maps", "run as root"));
        let error = error.context("weir vips").unwrap_err();
        assert_eq!(
            explain(&error),
            "error: weir vips: cannot open the maps: permission denied\n  fix: run as root\n"
        );
    }

    #[test]
    fn a_cause_that_was_told_is_not_told_again() {
        let error = anyhow::anyhow!("busy").context("map OWNERS: busy").context("weir vips");
        assert_eq!(explain(&error), "error: weir vips: map OWNERS: busy\n");
    }

    #[test]
    fn an_error_without_a_fix_is_one_line() {
        assert_eq!(explain(&anyhow::anyhow!("no luck")), "error: no luck\n");
    }
}
