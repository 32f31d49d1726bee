//! `crds`: the definitions of weir's objects in Kubernetes, a file each in `deploy/crds`. The weir binary says
//! them, out of the types that it reads with.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::process::CommandExt as _;
use crate::workspace::Workspace;

const FOLDER: &str = "deploy/crds";

/// Files by name.
type Files = BTreeMap<String, String>;

/// Writes all files, and removes those of definitions that are gone.
pub fn write(workspace: &Workspace) -> Result<()> {
    let (folder, wanted) = (workspace.root.join(FOLDER), generate(workspace)?);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    for name in read(&folder)?.keys().filter(|name| !wanted.contains_key(*name)) {
        let path = folder.join(name);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    for (name, text) in &wanted {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Fails where a file is not as it would be written.
pub fn check(workspace: &Workspace) -> Result<()> {
    let (wanted, found) = (generate(workspace)?, read(&workspace.root.join(FOLDER))?);
    let names = wanted.keys().chain(found.keys());
    let mut drifted: Vec<_> = names.filter(|it| wanted.get(*it) != found.get(*it)).collect();
    drifted.sort();
    drifted.dedup();
    if !drifted.is_empty() {
        bail!("{FOLDER}: {drifted:?} are not as the Rust types say: run `cargo xtask crds`");
    }
    println!("{} definitions in {FOLDER} are as the Rust types say", found.len());
    Ok(())
}

fn generate(workspace: &Workspace) -> Result<Files> {
    let mut weir = workspace.cargo();
    weir.args(["run", "--quiet", "--package=weir", "--", "manifest", "crds"]);
    split(&weir.stdout_of()?)
}

/// One file for each document, named as the kind is in the plural.
fn split(text: &str) -> Result<Files> {
    let documents = text.split("---\n").filter(|document| !document.trim().is_empty());
    let named = documents.map(|document| {
        let plural = document.lines().find_map(|line| line.trim().strip_prefix("plural: "));
        let plural = plural.context("a definition names no plural")?;
        Ok((format!("{plural}.yaml"), document.to_owned()))
    });
    named.collect()
}

fn read(folder: &Path) -> Result<Files> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Files::new()),
        entries => entries.with_context(|| format!("list {}", folder.display()))?,
    };
    let mut files = Files::new();
    for entry in entries {
        let path: PathBuf = entry?.path();
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.insert(name, text);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_document_is_a_file_named_after_its_plural() {
        let text = "---\nspec:\n  names:\n    plural: as\n---\nspec:\n  names:\n    plural: bs\n";
        let files = split(text).unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["as.yaml", "bs.yaml"]);
        assert!(split("---\nspec: {}\n").is_err());
    }
}
