//! `weir agent --cleanup`: takes weir off this node. Nothing else ever does.

use std::{collections::BTreeSet, fs, io, path::PathBuf};

use anyhow::Context;

use super::{lock, overrides};
use crate::{
    announce,
    cli::args::AgentArgs,
    config::{self, ConfigErrors},
    dataplane::attach,
    report::{control::SOCKET, status::FILE},
    sources::{checkpoint, kubernetes::api, trust},
};

/// Where every network device of this namespace is listed.
const DEVICES: &str = "/sys/class/net";

/// What an agent of this configuration leaves.
struct Traces {
    pin_dir: PathBuf,
    state_dir: PathBuf,
    devices: BTreeSet<String>,
}

/// Detaches everything, removes the pins of all layouts, the proxy entries of VIPs, the control socket,
/// checkpoints and the last account of an agent. What people ordered stays in the state folder.
///
/// A configuration that cannot be used does not keep weir on the node: then every device is looked at.
pub async fn cleanup(args: AgentArgs) -> anyhow::Result<()> {
    let traces = match config::load(&args.config, &overrides(&args)) {
        Ok(intent) => {
            let agent = intent.agent;
            let devices = agent.uplinks.into_iter().chain(agent.egress_devices).collect();
            Traces { pin_dir: agent.pin_dir, state_dir: agent.state_dir, devices }
        }
        Err(errors) => likely(&args, &errors)?,
    };
    let _lock = lock(&traces.pin_dir)?;
    let devices: Vec<_> = traces.devices.into_iter().collect();
    let mut removed = attach::cleanup(&traces.pin_dir, &devices).await?;
    let vips = announce::neighbour::forget().await?;
    removed.extend(vips.iter().map(|vip| format!("proxy entry of {vip}")));
    // Checkpoints hold keys.
    for name in [SOCKET, FILE, trust::FILE, api::FILE].into_iter().chain(checkpoint::EVERY_FILE) {
        let path = traces.state_dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => {
                result.with_context(|| format!("remove {}", path.display()))?;
                removed.push(path.display().to_string());
            }
        }
    }
    removed.iter().for_each(|removed| println!("removed {removed}"));
    if removed.is_empty() {
        println!("nothing of weir is here");
    }
    Ok(())
}

/// What can be told where the configuration is bad or gone.
fn likely(args: &AgentArgs, errors: &ConfigErrors) -> anyhow::Result<Traces> {
    let text = config::read_text(&args.config).unwrap_or_default();
    let pin_dir = args.pin_dir.clone().unwrap_or_else(|| config::likely_pin_dir(&text));
    let state_dir = args.state_dir.clone().unwrap_or_else(|| config::likely_state_dir(&text));
    errors.lines().for_each(|line| eprintln!("{line}"));
    eprintln!(
        "the configuration cannot be used: cleaning {} and {} (--pin-dir, --state-dir say others), and all devices",
        pin_dir.display(),
        state_dir.display()
    );
    let list = || -> io::Result<BTreeSet<String>> {
        fs::read_dir(DEVICES)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    let devices = list().with_context(|| format!("list {DEVICES}"))?;
    Ok(Traces { pin_dir, state_dir, devices })
}
