//! Carries one [`Write`] out.

use std::time::Duration;

use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Service},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ObjectMeta, PartialObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::timeout;

use super::{AddressPool, FINALIZER, MANAGER, Note, Step, Target, Write};
use crate::sources::kubernetes::crd::Frontend;

/// Of one request.
const REQUEST: Duration = Duration::from_secs(5);

/// Longest note of an Event that the API takes.
const NOTE: usize = 1024;

/// What became of a write.
#[derive(Debug, Default)]
pub struct Done {
    /// Version of the object after what could be written.
    pub version: Option<u64>,
    /// Why not all of it could.
    pub error: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum CommitError {
    #[error("the Lease is no longer ours")]
    NotLeading,
    #[error("no answer within {REQUEST:?}")]
    Silent,
    #[error("{}", chain(.0))]
    Api(#[from] kube::Error),
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// What the write is about, for the log.
pub fn name(write: &Write) -> String {
    match write {
        Write::Service { target, .. } => format!("Service/{}", target.name),
        Write::Pool { name, .. } => format!("AddressPool/{name}"),
        Write::Frontend { name, .. } => format!("Frontend/{name}"),
    }
}

/// Does its steps while `leads` says so. Events come last: they tell what was done, and one that is lost
/// is not repeated.
pub async fn commit(
    client: &Client,
    write: &Write,
    me: &str,
    now: impl Fn() -> Timestamp,
    leads: impl Fn() -> bool,
) -> Done {
    let mut done = Done::default();
    let version = &mut done.version;
    let (written, about, notes) = match write {
        Write::Service { target, steps, notes } => {
            let written = service(client, target, steps, leads, version).await;
            (written, about_service(target), notes)
        }
        Write::Pool { name, uid, status, notes } => {
            let about = about::<AddressPool>(name, uid);
            (told::<AddressPool>(client, &about, json!(status), leads, version).await, about, notes)
        }
        Write::Frontend { name, uid, status, notes } => {
            let about = about::<Frontend>(name, uid);
            (told::<Frontend>(client, &about, json!(status), leads, version).await, about, notes)
        }
    };
    if let Err(error) = written {
        done.error = Some(error.to_string());
        return done;
    }
    for (number, note) in notes.iter().enumerate() {
        if let Err(error) = event(client, &about, note, number, me, now()).await {
            tracing::debug!(object = name(write), reason = note.reason, %error, "Event is lost");
        }
    }
    done
}

/// Each step only upon the version that the one before left.
async fn service(
    client: &Client,
    target: &Target,
    steps: &[Step],
    leads: impl Fn() -> bool,
    version: &mut Option<u64>,
) -> Result<(), CommitError> {
    let services = Api::<Service>::namespaced(client.clone(), &target.name.namespace);
    let name = &target.name.name;
    let mut resource_version = target.resource_version.clone();
    let apply = PatchParams::apply(MANAGER).force();
    for step in steps {
        if !leads() {
            return Err(CommitError::NotLeading);
        }
        let metadata = json!({"uid": target.uid, "resourceVersion": resource_version});
        let whole = |mut metadata: serde_json::Value| {
            metadata["name"] = json!(name);
            metadata["namespace"] = json!(target.name.namespace);
            json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata})
        };
        let written = match step {
            Step::Hold => {
                let mut object = whole(metadata);
                object["metadata"]["finalizers"] = json!([FINALIZER]);
                within(services.patch(name, &apply, &Patch::Apply(&object)).boxed()).await?
            }
            Step::Status { ingress, conditions } => {
                let mut object = whole(metadata);
                object["status"] = json!({"loadBalancer": {"ingress": ingress}});
                if !conditions.is_empty() {
                    object["status"]["conditions"] = json!(conditions);
                }
                within(services.patch_status(name, &apply, &Patch::Apply(&object)).boxed()).await?
            }
            Step::Release(others) => {
                // Applying without it would leave a finalizer that somebody else has applied too.
                let mut metadata = metadata;
                metadata["finalizers"] = json!(others);
                let patch = json!({"metadata": metadata});
                let parameters =
                    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
                within(services.patch(name, &parameters, &Patch::Merge(&patch)).boxed()).await?
            }
        };
        resource_version = written.resource_version().unwrap_or_default();
        *version = resource_version.parse().ok();
    }
    Ok(())
}

/// The whole status of an object of our own.
async fn told<K: Resource<DynamicType = ()>>(
    client: &Client,
    about: &ObjectReference,
    status: serde_json::Value,
    leads: impl Fn() -> bool,
    version: &mut Option<u64>,
) -> Result<(), CommitError> {
    if !leads() {
        return Err(CommitError::NotLeading);
    }
    let objects = Api::<PartialObjectMeta<K>>::all(client.clone());
    let object = json!({
        "apiVersion": about.api_version,
        "kind": about.kind,
        "metadata": {"name": about.name, "uid": about.uid},
        "status": status,
    });
    let (name, apply) =
        (about.name.as_deref().unwrap_or_default(), PatchParams::apply(MANAGER).force());
    let written =
        within(objects.patch_status(name, &apply, &Patch::Apply(&object)).boxed()).await?;
    *version = written.resource_version().and_then(|it| it.parse().ok());
    Ok(())
}

fn about_service(target: &Target) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Service".into()),
        name: Some(target.name.name.clone()),
        namespace: Some(target.name.namespace.clone()),
        uid: Some(target.uid.clone()),
        ..ObjectReference::default()
    }
}

/// One of our own kinds.
fn about<K: Resource<DynamicType = ()>>(name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into()),
        kind: Some(K::kind(&()).into()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

async fn event(
    client: &Client,
    about: &ObjectReference,
    note: &Note,
    number: usize,
    me: &str,
    now: Timestamp,
) -> Result<(), CommitError> {
    let namespace = about.namespace.as_deref().unwrap_or("default");
    let name = about.name.as_deref().unwrap_or_default();
    let action = match about.kind.as_deref() {
        Some("Frontend") => "TakeUp",
        _ => "AllocateAddress",
    };
    let text: String = note.text.chars().take(NOTE / 4).collect();
    let event = Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}.{number}", now.as_millisecond())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some(if note.warning { "Warning" } else { "Normal" }.into()),
        reason: Some(note.reason.into()),
        action: Some(action.into()),
        note: Some(if note.text.len() <= NOTE { note.text.clone() } else { text }),
        regarding: Some(about.clone()),
        reporting_controller: Some(MANAGER.into()),
        reporting_instance: Some(me.to_owned()),
        event_time: Some(MicroTime(now)),
        ..Event::default()
    };
    let events = Api::<Event>::namespaced(client.clone(), namespace);
    within(events.create(&PostParams::default(), &event).boxed()).await?;
    Ok(())
}

async fn within<T>(request: BoxFuture<'_, Result<T, kube::Error>>) -> Result<T, CommitError> {
    Ok(timeout(REQUEST, request).await.map_err(|_| CommitError::Silent)??)
}
