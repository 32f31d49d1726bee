//! The product's maps on a BPF file system that nobody else sees, filled by the product from the text of a
//! file, and arrivals put into them. No program is attached. Needs root.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, MapData};
use lb_common::{
    arrival::{Arrival, ArrivalKey, Tick},
    backend::BackendId,
    net::Port,
};
use weir::{
    config::{self, Overrides},
    dataplane::{
        apply::{DataPlane, Scope, Surroundings},
        grace::Barrier,
        load::{self, Loaded},
        maps::{ArrivalMap, Maps},
        scan::Scanner,
        spec::maps_dir,
    },
    model::{AgentSettings, Intent, Members, Verdicts, drains::NONE_DRAINED},
    plan::{self, FrontendKey, Inputs},
};

use crate::pins::Pins;

/// One node's data plane.
pub struct Plane {
    pin_dir: PathBuf,
    file: PathBuf,
    data_plane: DataPlane<Maps>,
    agent: AgentSettings,
    /// As a reader opens them.
    pub maps: Maps,
    _loaded: Loaded,
    _folder: tempfile::TempDir,
    _pins: Pins,
}

impl Plane {
    /// Maps that hold what a file says. Moves the calling thread into a mount namespace of its own.
    pub fn new(text: &str) -> Result<Self> {
        let pins = Pins::private()?;
        let pin_dir = pins.dir("weir");
        let folder = tempfile::tempdir().context("make a folder for the file")?;
        let file = folder.path().join("weir.yaml");
        let intent = read(&file, &pin_dir, text)?;
        let agent = intent.agent;
        let settings = load::settings(&agent, &intent.nodes[&agent.node]);
        let (loaded, maps) = load::load(&pin_dir, &agent.limits, &settings)?;
        let barrier = Barrier::new().context("make the map that waits for grace periods")?;
        let wait = Box::new(move || barrier.wait());
        let data_plane = DataPlane::new(maps, &agent.node, &agent.seed, wait)?;
        let maps = Maps::open(&pin_dir)?;
        let (_loaded, _folder, _pins) = (loaded, folder, pins);
        let mut plane = Self { pin_dir, file, data_plane, agent, maps, _loaded, _folder, _pins };
        plane.apply(text)?;
        Ok(plane)
    }

    /// Makes the maps hold what another text says, of the same agent.
    pub fn apply(&mut self, text: &str) -> Result<()> {
        let intent = read(&self.file, &self.pin_dir, text)?;
        let names = intent.nodes.keys().map(String::as_str);
        let members = Members::assumed(&self.agent.node, names);
        let verdicts = Verdicts::default();
        let inputs = Inputs {
            intent: &intent,
            verdicts: &verdicts,
            members: &members,
            drained: &NONE_DRAINED,
        };
        let desired = plan::desired(&inputs);
        let around = Surroundings { mtu: 1500, ..Surroundings::default() };
        let problems = self.data_plane.apply(&desired, &around, &Scope::All)?;
        ensure!(problems.is_empty(), "not all is held: {problems:?}");
        Ok(())
    }

    pub fn scanner(&self) -> Result<Scanner> {
        Ok(Scanner::open(&self.pin_dir, &self.agent.seed, self.agent.arrivals)?)
    }

    /// Key of the agent's flow hash.
    pub fn flow_key(&self) -> [u64; 2] {
        weir::dataplane::keys::Keys::of(&self.agent.seed).flow
    }

    /// The index of a frontend's service for clients outside.
    pub fn service(&self, frontend: &FrontendKey) -> Result<u32> {
        let found = self.maps.frontends.get(&frontend.endpoint())?;
        Ok(found.context("no such frontend")?.outside)
    }

    pub fn backend(&self, address: SocketAddr) -> Result<BackendId> {
        let is = |it: &lb_common::backend::Backend| {
            it.addr.to_ip() == address.ip() && it.port.get() == address.port()
        };
        Ok(self.maps.living_backends().find(is).context("no such backend")?.id)
    }

    /// Lets flows arrive.
    pub fn arrive(
        &self,
        which: ArrivalMap,
        flows: impl IntoIterator<Item = (ArrivalKey, Arrival)>,
    ) -> Result<()> {
        let data = MapData::from_pin(maps_dir(&self.pin_dir).join(which.name()))?;
        let mut map = HashMap::try_from(aya::maps::Map::from_map_data(data)?)?;
        for (key, arrival) in flows {
            map.insert(key, arrival, 0)?;
        }
        Ok(())
    }
}

fn read(file: &std::path::Path, pin_dir: &std::path::Path, text: &str) -> Result<Intent> {
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    let overrides = Overrides { pin_dir: Some(pin_dir.into()), ..Overrides::default() };
    Ok(config::load(file, &overrides)?)
}

/// The flow of a client to a backend.
pub fn key(client: impl Into<IpAddr>, port: u16, backend: BackendId) -> ArrivalKey {
    ArrivalKey::new(client.into().into(), Port::new(port), backend)
}

/// An arrival that was last seen so long ago.
pub fn seen(service: u32, flags: u32, ago: Duration) -> Result<Arrival> {
    let now = Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?);
    // On a machine that has not run for so long, ticks wrap.
    let nanos = (now.as_nanos() as u64 + (1 << 52)) - ago.as_nanos() as u64;
    Ok(Arrival {
        service,
        seen: Arrival::pack(flags, Tick::from_nanos(nanos)),
        ..Arrival::default()
    })
}
