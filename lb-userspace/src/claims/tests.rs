use std::{collections::BTreeMap, net::SocketAddr, sync::Mutex};

use tokio::time::timeout;

use super::*;
use crate::{
    membership::Topic,
    model::Protocol,
    plan::{
        FrontendKey,
        flows::{Displaced, Lineage},
    },
};

const ENOUGH: Duration = Duration::from_secs(20);

fn frontend() -> FrontendKey {
    FrontendKey { address: [192, 0, 2, 1].into(), port: 80, protocol: Protocol::Tcp }
}

fn backend() -> SocketAddr {
    ([10, 0, 0, 1], 80).into()
}

fn applied(turn: u64, epoch: u64) -> Arc<Applied> {
    let lineage = Lineage { epoch, owners: Arc::default(), past: Vec::new() };
    Arc::new(Applied { turn, recent: Arc::new([(frontend(), lineage)].into()) })
}

/// One node's claims, and what its scans find.
struct Running {
    found: Arc<Mutex<Scan>>,
    applied: watch::Sender<Arc<Applied>>,
    heard: mpsc::UnboundedSender<Vec<Change>>,
    members: watch::Sender<Arc<Members>>,
    published: mpsc::UnboundedReceiver<Publication>,
    consensus: watch::Receiver<Arc<Consensus>>,
    scanned: watch::Receiver<Arc<Scan>>,
}

impl Running {
    fn start() -> Self {
        let found = Arc::new(Mutex::new(Scan::default()));
        let (applied, applied_in) = watch::channel(Arc::default());
        let (heard, heard_in) = mpsc::unbounded_channel();
        let (members, members_in) = watch::channel(Arc::default());
        let (publish, published) = mpsc::unbounded_channel();
        let (consensus_out, consensus) = watch::channel(Arc::default());
        let (scanned_out, scanned) = watch::channel(Arc::default());
        let channels = Channels {
            applied: applied_in,
            heard: heard_in,
            members: members_in,
            publish,
            consensus: consensus_out,
            scanned: scanned_out,
        };
        let finds = found.clone();
        let scanning = Box::new(move || Ok(finds.lock().unwrap().clone()));
        tokio::spawn(async move { run("a", scanning, channels).await });
        Self { found, applied, heard, members, published, consensus, scanned }
    }

    fn finds(&self, flows: u64) {
        let displaced = Displaced { flows, slots: [7].into() };
        let claims = BTreeMap::from([(backend(), displaced)]);
        self.found.lock().unwrap().displaced = [(frontend(), claims)].into();
    }

    async fn publication(&mut self) -> Publication {
        timeout(ENOUGH, self.published.recv()).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn a_turn_is_listed_after_the_claims_of_a_scan_that_began_later() {
    let mut running = Running::start();
    timeout(ENOUGH, running.scanned.changed()).await.unwrap().unwrap();
    running.finds(3);
    running.applied.send_replace(applied(1, 5));
    let (claim, value) = running.publication().await;
    assert_eq!(claim, wire::claim_key(&frontend(), backend()));
    assert_eq!(wire::decode_claim(&value.unwrap()).unwrap().flows, 3);
    let (view, value) = running.publication().await;
    assert_eq!(view.topic, Topic::VIEW);
    assert_eq!(wire::decode_view(&value.unwrap()).unwrap()[&frontend()].epoch, 5);
    let consensus = running.consensus.borrow().clone();
    assert_eq!(consensus.claims[&frontend()].flows[&backend()], (3, "a".into()));
    assert_eq!(consensus.views["a"][&frontend()], 5);
}

#[tokio::test]
async fn what_others_say_is_told_with_what_this_node_finds() {
    let mut running = Running::start();
    let claim = Displaced { flows: 1, slots: [9].into() };
    let publication = (wire::claim_key(&frontend(), backend()), Some(wire::encode_claim(&claim)));
    running.heard.send(vec![heard(&"b".into(), &publication)]).unwrap();
    let claims = |consensus: &Arc<Consensus>| consensus.claims.contains_key(&frontend());
    timeout(ENOUGH, running.consensus.wait_for(claims)).await.unwrap().unwrap();
    let mut members = Members::assumed("a", ["a", "b"]);
    members.nodes.get_mut("b").unwrap().life = crate::model::Life::Dead;
    running.members.send_replace(Arc::new(members));
    let none = |consensus: &Arc<Consensus>| consensus.claims.is_empty();
    timeout(ENOUGH, running.consensus.wait_for(none)).await.unwrap().unwrap();
}

#[tokio::test]
async fn scans_that_follow_changes_are_a_second_apart() {
    let mut running = Running::start();
    timeout(ENOUGH, running.scanned.changed()).await.unwrap().unwrap();
    let first = Instant::now();
    running.applied.send_replace(applied(1, 5));
    timeout(ENOUGH, running.scanned.changed()).await.unwrap().unwrap();
    assert!(first.elapsed() > SCAN_REST / 2, "{:?}", first.elapsed());
}
