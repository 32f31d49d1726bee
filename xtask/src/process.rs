//! Running other programs: what they say is shown, what fails is named with its whole command line.

use std::env;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

pub trait CommandExt {
    /// Runs the command with our output and expects success.
    fn run(&mut self) -> Result<()>;
    /// Runs it with its standard output on our standard error, which leaves ours to results.
    fn run_quietly(&mut self) -> Result<()>;
    /// Its standard output, whole; expects success.
    fn stdout_of(&mut self) -> Result<String>;
    /// Shows each line of its standard output and hands it to `each`. True: it succeeded.
    fn run_with_lines(&mut self, each: impl FnMut(&str)) -> Result<bool>;
    /// The command as one would type it.
    fn line(&self) -> String;
}

impl CommandExt for Command {
    fn run(&mut self) -> Result<()> {
        let status = self.status().with_context(|| format!("start {}", self.line()))?;
        if !status.success() {
            bail!("{} ended with {status}", self.line());
        }
        Ok(())
    }

    fn run_quietly(&mut self) -> Result<()> {
        self.stdout(std::io::stderr()).run()
    }

    fn stdout_of(&mut self) -> Result<String> {
        let output = self.output().with_context(|| format!("start {}", self.line()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{} ended with {}: {}", self.line(), output.status, said.trim());
        }
        String::from_utf8(output.stdout).with_context(|| format!("read what {} said", self.line()))
    }

    fn run_with_lines(&mut self, mut each: impl FnMut(&str)) -> Result<bool> {
        let mut child = self
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", self.line()))?;
        let stdout = child.stdout.take().context("the child has no standard output")?;
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.with_context(|| format!("read what {} says", self.line()))?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            each(&line);
        }
        let status = child.wait().with_context(|| format!("wait for {}", self.line()))?;
        Ok(status.success())
    }

    fn line(&self) -> String {
        let mut line = self.get_program().to_string_lossy().into_owned();
        for arg in self.get_args() {
            // Writing to a String cannot fail.
            let _ = write!(line, " {}", arg.to_string_lossy());
        }
        line
    }
}

/// Drops what `cargo run` told xtask about xtask's own package, lest children's build scripts differ
/// from those of a plain cargo command and everything be built twice.
pub fn forget_package(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
}

/// True when we are root, whose rights test-runs and namespaces need.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    // `/proc/self` belongs to the effective user.
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Whether a program of this name is on the path or in the system's directories.
pub fn has_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(name).is_file())
}
