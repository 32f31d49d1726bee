//! Stands between cargo and the compiler of the BPF programs, so that the object does not tell which folder it was built in.
//!
//! Cargo tells the compiler a name for each crate (`-C metadata`), and symbols and the order of types in the object follow
//! from it. It takes that name from the folder of a crate that lies outside of the workspace, as lb-common does here.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context, Result};

/// Set where this program is run in the compiler's stead.
const STANDS_IN: &str = "XTASK_STANDS_IN_FOR_RUSTC";

/// What cargo calls the packages of the BPF programs' build that are ours.
const OURS: &str = "lb-";

/// Lets cargo call this program, with the compiler as its first argument.
pub fn stand_in(cargo: &mut Command) -> Result<()> {
    let this = env::current_exe().context("find this program")?;
    cargo.env("RUSTC_WRAPPER", this).env(STANDS_IN, "1");
    Ok(())
}

/// Becomes the compiler if cargo called this program in its stead; returns why it could not. None: a person called it.
pub fn become_it() -> Option<io::Error> {
    env::var_os(STANDS_IN)?;
    let mut args = env::args_os().skip(1);
    let rustc = args.next()?;
    let package = env::var("CARGO_PKG_NAME").unwrap_or_default();
    let args = rename(&package, args.collect());
    Some(Command::new(rustc).args(args).exec())
}

/// Arguments of the compiler, with the crates of our packages named after themselves.
fn rename(package: &str, mut args: Vec<OsString>) -> Vec<OsString> {
    let name = args.iter().position(|arg| arg == "--crate-name").and_then(|at| args.get(at + 1));
    if let Some(name) = name.cloned().filter(|_| package.starts_with(OURS)) {
        for arg in &mut args {
            if arg.to_string_lossy().starts_with("metadata=") {
                *arg = OsString::from("metadata=");
                arg.push(&name);
            }
        }
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renamed(package: &str) -> Vec<OsString> {
        let args = ["--crate-name", "lb_common", "-C", "metadata=0123", "-C", "extra-filename=-45"];
        rename(package, args.map(OsString::from).into())
    }

    #[test]
    fn our_crates_are_named_alike_wherever_they_lie() {
        let wanted =
            ["--crate-name", "lb_common", "-C", "metadata=lb_common", "-C", "extra-filename=-45"];
        assert_eq!(renamed("lb-common"), wanted);
    }

    #[test]
    fn crates_of_others_keep_the_name_that_cargo_gives() {
        assert_eq!(renamed("core")[3], "metadata=0123");
    }

    #[test]
    fn questions_about_the_compiler_pass() {
        let asked = vec![OsString::from("-vV")];
        assert_eq!(rename("", asked.clone()), asked);
    }
}
