//! `cluster`: a real cluster needs, besides Kubernetes and weir's image, what a node runs pods with and a program to run in them.
//!
//! containerd, runc and plugins for networks come as Debian's packages, unpacked into the user's cache, once: nothing is
//! installed, and apt works on lists and settings of its own. The pods' program is built here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::kubernetes::{self, Kubernetes, Parts};
use crate::process::CommandExt as _;
use crate::workspace::{Workspace, tool_cache};
use crate::{Setup, build_bpf, image, setup, weir};

/// Names the folder of the packages.
const PACKAGES: &str = "WEIR_CONTAINER_PACKAGES";
/// Names the pods' program.
const POD: &str = "WEIR_POD_BIN";
/// Names the archive of weir's image.
const IMAGE: &str = "WEIR_IMAGE";
/// Packages and the release that each is taken from: the newest containerd that Kubernetes has been tried with, and a runc
/// that runs on the oldest system that weir is built on.
const WANTED: [(&str, &str); 3] =
    [("containerd", "forky"), ("containernetworking-plugins", "forky"), ("runc", "bookworm")];
/// Signs Debian's releases.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const POD_SOURCE: &str = "tests/src/bin/pod.rs";

/// Builds everything, and runs the program as root with these arguments.
pub fn run(workspace: &Workspace, setup: &Setup, arguments: &[String]) -> Result<()> {
    let install = !setup.no_install;
    setup::ensure(&setup::to_run(), install)?;
    setup::ensure(&setup::to_build_kubernetes(workspace, Parts::WithNodes)?, install)?;
    let packages = packages(install)?;
    let pod = build_pod(workspace)?;
    build_bpf(workspace, setup, None)?;
    let image = image::build(workspace)?;
    let mut cargo = workspace.cargo();
    cargo
        .args(["run", "--quiet", "--package=lb-tests", "--bin=cluster", "--"])
        .args(arguments)
        .env(kubernetes::BINARY, Kubernetes::of(workspace, Parts::WithNodes)?.binary())
        .env(PACKAGES, packages)
        .env(POD, pod)
        .env(IMAGE, image.path)
        .env(weir::PRODUCT, image.binary);
    setup::run_as_root(&mut cargo)?;
    cargo.run()
}

/// One file that needs no other: there is nothing else in the pods' image.
fn build_pod(workspace: &Workspace) -> Result<PathBuf> {
    let to = workspace.target.join("pod");
    fs::create_dir_all(&workspace.target)?;
    Command::new("rustc")
        .args(["--edition=2024", "-Ctarget-feature=+crt-static", "-Copt-level=2", "-Cpanic=abort"])
        .arg("-o")
        .arg(&to)
        .arg(workspace.root.join(POD_SOURCE))
        .run_quietly()?;
    Ok(to)
}

/// The folder with the packages' files; with `install` false they must be there.
fn packages(install: bool) -> Result<PathBuf> {
    let to = tool_cache()?.join(format!("containers-{}", releases().join("-")));
    if to.is_dir() {
        return Ok(to);
    }
    ensure!(install, "containerd and runc are missing at {}", to.display());
    eprintln!("unpacking containerd and runc into {} (once, 43 MB are fetched)", to.display());
    let work = to.with_extension("work");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    }
    let root = work.join("root");
    fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    let apt = Apt::new(&work, &mirror()?)?;
    apt.get(&["update"]).run_quietly()?;
    let names = WANTED.map(|(name, release)| format!("{name}/{release}"));
    apt.get(&["download"]).args(&names).run_quietly()?;
    for package in fs::read_dir(&work)? {
        let package = package?.path();
        if package.extension().is_some_and(|kind| kind == "deb") {
            Command::new("dpkg-deb").arg("-x").arg(&package).arg(&root).run_quietly()?;
        }
    }
    fs::rename(&root, &to).context("put the packages in place")?;
    fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    Ok(to)
}

fn releases() -> Vec<&'static str> {
    let mut releases: Vec<_> = WANTED.iter().map(|(_, release)| *release).collect();
    releases.dedup();
    releases
}

/// Where this machine has Debian's packages from.
fn mirror() -> Result<String> {
    let ask = ["indextargets", "--format", "$(SITE)", "Created-By: Packages"];
    let sites = Command::new("apt-get").args(ask).stdout_of().context("this is no Debian")?;
    let Some(site) = sites.lines().find(|site| site.trim_end_matches('/').ends_with("/debian"))
    else {
        bail!("apt has no sources of Debian's packages");
    };
    Ok(site.to_owned())
}

/// apt with settings, lists and a folder of its own.
struct Apt<'a>(&'a Path);

impl<'a> Apt<'a> {
    fn new(work: &'a Path, mirror: &str) -> Result<Self> {
        let source = |release| format!("deb [signed-by={KEYRING}] {mirror} {release} main\n");
        let sources = releases().into_iter().map(source);
        fs::write(work.join("sources.list"), sources.collect::<String>())?;
        for folder in ["empty", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(work.join(folder))?;
        }
        Ok(Self(work))
    }

    fn get(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("apt-get");
        let own = [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::Etc::sourceparts", "empty"),
            ("Dir::Etc::preferences", "empty/none"),
            ("Dir::Etc::preferencesparts", "empty"),
            ("Dir::State::lists", "lists"),
            ("Dir::Cache", "cache"),
        ];
        command.current_dir(self.0).arg("--quiet");
        for (setting, place) in own {
            command.arg("-o").arg(format!("{setting}={}", self.0.join(place).display()));
        }
        let settings = [
            // apt's own user may not write into the cache of whoever calls.
            "APT::Sandbox::User=root",
            // Lists that are not needed.
            "Acquire::Languages=none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
        ];
        for setting in settings {
            command.args(["-o", setting]);
        }
        command.args(arguments);
        command
    }
}
