//! What users install, so that tests find out what it lacks: objects of `deploy/weir.yaml`.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::{Cluster, Server};

/// Where weir is installed.
pub const NAMESPACE: &str = "weir-system";
/// The name of its account.
const ACCOUNT: &str = "weir";
pub const MANIFESTS: &str = include_str!("../../../deploy/weir.yaml");
const DEFINITION: &str = "CustomResourceDefinition";

/// What agents may of what is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rights {
    /// All that users grant.
    All,
    /// Without the Lease: no agent gives addresses, so that the test can.
    NoLease,
}

impl Cluster<'_> {
    /// Makes weir's namespace, and its account with the rights that users grant it. Returns the account's files, as
    /// [`service_account`](Cluster::service_account) does.
    pub fn install_account(&self, rights: Rights) -> Result<PathBuf> {
        let all = ["Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding"];
        let lease: &[_] = match rights {
            Rights::All => &["Role", "RoleBinding"],
            Rights::NoLease => &[],
        };
        self.server().apply(&manifests(&[&all, lease].concat())?)?;
        self.credentials(NAMESPACE, ACCOUNT)
    }
}

impl Server<'_> {
    /// Defines weir's own kinds, and waits until they are served.
    pub fn install_definitions(&self) -> Result<()> {
        self.apply(&manifests(&[DEFINITION])?)?;
        self.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"])?;
        Ok(())
    }
}

/// All objects of these kinds, in the order of the manifests. An error where one has none.
fn manifests(kinds: &[&str]) -> Result<String> {
    let objects = MANIFESTS.split("\n---\n").filter_map(|object| {
        let kind = object.lines().find_map(|line| line.strip_prefix("kind: "))?;
        Some((kind, object))
    });
    let (found, objects): (Vec<_>, Vec<_>) =
        objects.filter(|(kind, _)| kinds.contains(kind)).unzip();
    ensure!(kinds.iter().all(|kind| found.contains(kind)), "of {kinds:?} there are {found:?}");
    Ok(objects.join("\n---\n"))
}
