use serde_json::{Value, json};

use super::*;
use crate::{
    config,
    model::{Node, Pool},
};

fn schema() -> Value {
    let definition = serde_json::to_value(Frontend::crd()).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
}

/// Every field of a schema, filled in.
fn full() -> Value {
    json!({
        "addresses": ["192.0.2.1", "2001:db8::1"],
        "ports": [{"name": "a", "port": 80, "protocol": "TCP", "targetPort": 8080}],
        "pool": {"members": [
            {"address": "10.0.0.1", "port": 80, "weight": 2, "node": "n1", "terminating": false},
            {"address": "fd00::1", "node": "n1"},
        ]},
        "delivery": "tunnel",
        "healthCheck": {
            "type": "HTTPS", "port": 81, "path": "/ok", "host": "a.example", "interval": "1s", "timeout": "500ms",
            "rise": 1, "fall": 1, "jitter": "5%", "acceptStatus": [204, "300-399"], "insecureSkipVerify": true,
        },
        "slots": 101,
        "sessionAffinity": "ClientIP",
        "echo": false,
        "externalTrafficPolicy": "Local",
        "announce": {"nodeSelector": {"matchLabels": {"a": "b"}}, "interfaces": ["eth*"]},
        "sourceRanges": ["10.0.0.0/8", "2001:db8::/32"],
    })
}

fn nodes() -> BTreeMap<String, Node> {
    let addresses = ["10.0.0.1", "fd00::1"].map(|it| it.parse().unwrap()).into();
    let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    [("n1".to_owned(), Node { name: "n1".into(), addresses, labels })].into()
}

/// Names of fields and, below them, of theirs, as far as an example goes.
fn same_fields(path: &str, schema: &Value, example: &Value) {
    match example {
        Value::Object(fields) => {
            let known = schema["properties"].as_object();
            let Some(known) = known else { return };
            for name in known.keys() {
                let more = path == ".pool" && name == "nodeSelector";
                assert!(more || fields.contains_key(name), "the example lacks {path}.{name}");
            }
            for (name, value) in fields {
                assert!(known.contains_key(name), "the schema lacks {path}.{name}");
                same_fields(&format!("{path}.{name}"), &known[name], value);
            }
        }
        Value::Array(list) => same_fields(path, &schema["items"], &list[0]),
        _ => {}
    }
}

#[test]
fn schema_and_reader_know_the_same_fields() {
    let example = full();
    same_fields("", &schema(), &example);
    let agent = super::super::tests::agent();
    let name = "api".to_owned();
    let (good, problems) =
        config::frontends([(&name, &example)].into_iter(), &agent, &nodes().into());
    assert_eq!(problems, []);
    let object = &good["api"];
    assert_eq!((object.slots, object.echo, object.local_only), (Some(101), false, true));
    assert_eq!(object.source_ranges.len(), 2);
    // What the API server fills in is what the reader takes where a field is absent.
    let typed: FrontendSpec = serde_json::from_value(json!({
        "addresses": ["192.0.2.1"], "ports": [{"port": 80}], "pool": {"nodeSelector": {}},
    }))
    .unwrap();
    let (plain, filled) = (
        json!({"addresses": ["192.0.2.1"], "ports": [{"port": 80}], "pool": {"nodeSelector": {}}}),
        serde_json::to_value(typed).unwrap(),
    );
    let read = |spec: &Value| {
        let (good, problems) =
            config::frontends([(&name, spec)].into_iter(), &agent, &nodes().into());
        (good["api"].clone(), problems)
    };
    assert_eq!(read(&plain), read(&filled));
    assert!(matches!(read(&plain).0.pool, Pool::Nodes { .. }));
}

#[test]
fn a_bad_object_costs_only_itself_and_says_what_is_wrong() {
    let agent = super::super::tests::agent();
    let mut bad = full();
    bad["ports"][0]["port"] = json!(0);
    bad["colour"] = json!("red");
    let unknown = json!({
        "addresses": ["192.0.2.2"], "ports": [{"port": 80}],
        "pool": {"members": [{"address": "10.9.9.9", "node": "n9"}]},
    });
    let empty = json!({
        "addresses": ["192.0.2.3"], "ports": [{"port": 80}],
        "pool": {"nodeSelector": {"matchLabels": {"role": "none"}}},
    });
    let objects = [
        ("bad", bad),
        ("empty", empty),
        ("good", full()),
        ("null", Value::Null),
        ("unknown", unknown),
    ]
    .map(|(name, spec)| (name.to_owned(), spec));
    let (good, problems) =
        config::frontends(objects.iter().map(|(a, b)| (a, b)), &agent, &nodes().into());
    assert_eq!(
        good.keys().collect::<Vec<_>>(),
        ["empty", "good"],
        "that no node matches stops nothing"
    );
    let told: Vec<String> =
        problems.iter().map(|it| format!("{} {}", it.object, it.message)).collect();
    for (index, text) in [
        "Frontend/bad spec: unknown field `colour`",
        "Frontend/bad spec.ports[0].port: 0 is out of range",
        "Frontend/empty spec.addresses[0]: 192.0.2.3 has no IPv4 member in its pool",
        "Frontend/null `spec` is missing",
        "Frontend/unknown spec.pool.members[0]: no object `Node/n9`",
    ]
    .iter()
    .enumerate()
    {
        assert!(told.iter().any(|it| it.starts_with(text)), "{index}: {text}: {told:#?}");
    }
}

#[test]
fn definitions_have_schemas_rules_and_a_status() {
    let definition = serde_json::to_value(Frontend::crd()).unwrap();
    let version = &definition["spec"]["versions"][0];
    assert_eq!(definition["spec"]["scope"], "Cluster");
    assert_eq!(definition["spec"]["names"]["shortNames"], json!(["fe"]));
    assert!(version["subresources"]["status"].is_object());
    let text = definition.to_string();
    for rule in ["oldSelf.slots", "isIP(a)", "isCIDR(r)", "either members or nodeSelector"] {
        assert!(text.contains(rule), "{rule}");
    }
    let text = manifests().unwrap();
    let documents = text.matches("kind: CustomResourceDefinition").count();
    assert_eq!(documents, definitions().len());
}
