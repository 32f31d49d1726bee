//! On which ports load balancers in front of the nodes ask for Services of ours, and what they are told.
//!
//! By the API's word on endpoints alone, as kube-proxy tells it: no probe and no drain counts. While no API
//! server can be asked, its last word does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use tokio::{sync::watch, task::JoinSet, time::sleep};

use super::snapshot::{Name, Service, Snapshot};
use crate::report::health_port::{self, Health, Healths};
use crate::watched::Watched as _;

/// Changes within this are one.
const COALESCE: Duration = Duration::from_millis(100);

/// Serves all ports for as long as the agent runs.
pub fn start(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    default_class: bool,
    node: String,
    mut snapshots: watch::Receiver<Option<Snapshot>>,
) {
    let (sender, wanted) = watch::channel(Healths::new());
    tasks.spawn(async move {
        let follow = async {
            loop {
                let snapshot = snapshots.copy_and_update().unwrap_or_default();
                let healths = healths(&snapshot, default_class, &node);
                sender.send_if_modified(|former| {
                    let changed = *former != healths;
                    *former = healths;
                    changed
                });
                if snapshots.changed().await.is_err() {
                    // A sender that is gone shows as its task's end.
                    std::future::pending::<()>().await;
                }
                sleep(COALESCE).await;
            }
        };
        tokio::select! {
            () = follow => {}
            () = health_port::run(wanted) => {}
        }
        Ok(())
    });
}

/// What is told on node `own`, by port. Of two Services with one port the first by name has it.
pub fn healths(snapshot: &Snapshot, default_class: bool, own: &str) -> Healths {
    let asked = |service: &&Service| {
        service.is_ours(default_class) && service.local_only && !service.ending
    };
    let services = snapshot.services.values().map(|it| &**it).filter(asked);
    let ports: BTreeMap<&Name, u16> =
        services.filter_map(|it| Some((&it.name, it.health_port?))).collect();
    let mut ready: BTreeMap<&Name, BTreeSet<IpAddr>> = BTreeMap::new();
    let slices = snapshot.slices.values().filter(|_| !ports.is_empty());
    for slice in slices.filter(|slice| ports.contains_key(&slice.service)) {
        let here = slice.endpoints.iter().filter(|it| it.node.as_deref() == Some(own));
        let serving = here.filter(|it| it.ready && !it.terminating).map(|it| it.address);
        ready.entry(&slice.service).or_default().extend(serving);
    }
    let mut healths = Healths::new();
    for (service, port) in ports {
        let Name { namespace, name } = service.clone();
        let local = ready.get(service).map_or(0, BTreeSet::len);
        healths.entry(port).or_insert(Health { namespace, name, local });
    }
    healths
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{
        super::snapshot::{CLASS, Endpoint, Slice},
        *,
    };

    fn snapshot(change: impl Fn(&mut Service)) -> Snapshot {
        let name = Name::new("d", "s");
        let mut service = Service {
            name: name.clone(),
            load_balancer: true,
            class: Some(CLASS.into()),
            local_only: true,
            health_port: Some(32000),
            ..Service::default()
        };
        change(&mut service);
        let endpoint = |n: u8, node: &str, ready, terminating| Endpoint {
            address: [10, 1, 0, n].into(),
            node: Some(node.into()),
            ready,
            serving: true,
            terminating,
            hints: None,
        };
        let here = vec![
            endpoint(1, "n1", true, false),
            endpoint(2, "n1", false, false),
            endpoint(3, "n1", true, true),
            endpoint(4, "n2", true, false),
            endpoint(5, "n1", true, false),
        ];
        let slice = |endpoints: Vec<Endpoint>| {
            let (service, endpoints) = (name.clone(), endpoints.into());
            Slice { service, ports: Vec::new(), endpoints }
        };
        let slices = [slice(here), slice(vec![endpoint(1, "n1", true, false)])];
        let slices = slices.into_iter().enumerate();
        Snapshot {
            services: [(Arc::new(name.clone()), Arc::new(service))].into_iter().collect(),
            slices: slices
                .map(|(n, it)| (Arc::new(Name::new("d", n.to_string())), Arc::new(it)))
                .collect(),
            ..Snapshot::default()
        }
    }

    #[test]
    fn ready_addresses_on_this_node_count_once() {
        let told = |node| healths(&snapshot(|_| {}), false, node)[&32000].local;
        assert_eq!((told("n1"), told("n2"), told("n3")), (2, 1, 0));
    }

    #[test]
    fn only_local_services_of_ours_are_asked_for() {
        for (condition, change) in [
            ("a foreign class", (|it| it.class = Some("other".into())) as fn(&mut Service)),
            ("all endpoints serve", |it| it.local_only = false),
            ("no port", |it| it.health_port = None),
            ("it is being deleted", |it| it.ending = true),
        ] {
            assert_eq!(healths(&snapshot(change), false, "n1"), Healths::new(), "{condition}");
        }
    }
}
