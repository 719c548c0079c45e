//! The manifests of `deploy/kubernetes`, as a real API server takes them, and the rights that they give.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use harness::process::root;
use http::Method;
use serde_json::{Value, json};

use crate::{
    Scenario,
    server::{Server, Writer, object},
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("the_manifests_are_taken_whole", the_manifests_are_taken_whole),
    ("the_parts_of_the_manifests_find_each_other", the_parts_of_the_manifests_find_each_other),
    ("the_rights_of_the_manifest_are_those_of_the_sink", the_rights_of_the_manifest_are_those_of_the_sink),
    ("pods_are_seen_by_a_right_of_their_own", pods_are_seen_by_a_right_of_their_own),
];

const NAMESPACE: &str = "sofa-registry";

/// What `kubectl apply -k deploy/kubernetes/FOLDER` would send; a kustomization lists every file that lies beside it.
fn rendered(folder: &str) -> Vec<Value> {
    let folder = root().join("deploy/kubernetes").join(folder);
    let kustomization = &documents(&folder.join("kustomization.yaml"))[0];
    let known = ["apiVersion", "kind", "resources"];
    let unknown: Vec<&String> =
        kustomization.as_object().unwrap().keys().filter(|key| !known.contains(&key.as_str())).collect();
    assert!(unknown.is_empty(), "{} has {unknown:?}, which this does not render", folder.display());
    let listed: Vec<PathBuf> =
        kustomization["resources"].as_array().unwrap().iter().map(|file| folder.join(file.as_str().unwrap())).collect();
    let there = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let there: BTreeSet<PathBuf> = there.filter(|file| !file.ends_with("kustomization.yaml")).collect();
    assert_eq!(there, listed.iter().cloned().collect(), "what lies there, and what is listed");
    listed.iter().flat_map(|file| documents(file)).collect()
}

fn documents(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap();
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The only object of a kind.
fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut all = objects.iter().filter(|object| object["kind"] == kind);
    let first = all.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(all.next().is_none(), "more than one {kind}");
    first
}

/// Where an object is at the API server.
fn path_of(object: &Value) -> String {
    let version = object["apiVersion"].as_str().unwrap();
    let group = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let kind = object["kind"].as_str().unwrap().to_lowercase();
    let plural = kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"));
    let name = object["metadata"]["name"].as_str().unwrap();
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{group}/namespaces/{namespace}/{plural}/{name}"),
        None => format!("{group}/{plural}/{name}"),
    }
}

fn make_namespace(server: &Server) {
    let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
    server.apply(&format!("/api/v1/namespaces/{NAMESPACE}"), &object.to_string());
}

/// Gives the session servers the right to see pods.
pub(crate) fn grant_pods(server: &Server) {
    for object in rendered("visibility") {
        let (status, answer) = apply(server, &object, "");
        assert!([200, 201].contains(&status), "{status} {answer}");
    }
}

/// Takes it away.
pub(crate) fn revoke_pods(server: &Server) {
    for object in rendered("visibility") {
        let (status, answer) = server.ask(Method::DELETE, "application/json", &path_of(&object), "");
        assert!([200, 404].contains(&status), "{status} {answer}");
    }
}

/// Applies an object by server-side apply, with unknown fields forbidden.
fn apply(server: &Server, object: &Value, options: &str) -> (u16, Value) {
    let path = format!("{}?fieldManager=deploy&fieldValidation=Strict{options}", path_of(object));
    server.ask(Method::PATCH, "application/apply-patch+yaml", &path, &object.to_string())
}

fn the_manifests_are_taken_whole(server: &mut Server) {
    make_namespace(server);
    let mut kinds = BTreeMap::<String, usize>::new();
    for object in [rendered("session"), rendered("sink"), rendered("visibility")].concat() {
        let (status, answer) = apply(server, &object, "&dryRun=All");
        assert!([200, 201].contains(&status), "{}: {status} {answer}", path_of(&object));
        assert_eq!(answer["metadata"]["name"], object["metadata"]["name"]);
        *kinds.entry(object["kind"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    let expected = [
        ("ClusterRole", 1),
        ("ClusterRoleBinding", 1),
        ("ConfigMap", 1),
        ("NetworkPolicy", 1),
        ("PodDisruptionBudget", 1),
        ("Role", 2),
        ("RoleBinding", 2),
        ("Service", 1),
        ("ServiceAccount", 1),
        ("StatefulSet", 1),
    ];
    assert_eq!(kinds, expected.map(|(kind, count)| (kind.to_owned(), count)).into());
    assert_eq!(server.get(&path_of(of_kind(&rendered("session"), "StatefulSet"))), None, "a dry run leaves nothing");
    // An unknown field is refused, so what was taken has none.
    let mut wrong = of_kind(&rendered("session"), "StatefulSet").clone();
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = json!({});
    let (status, answer) = apply(server, &wrong, "&dryRun=All");
    assert!(status >= 400 && answer.to_string().contains("readynessProbe"), "{status} {answer}");
}

fn the_parts_of_the_manifests_find_each_other(_: &mut Server) {
    let objects = rendered("session");
    let set = of_kind(&objects, "StatefulSet");
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    let selectors = [
        &set["spec"]["selector"]["matchLabels"],
        &of_kind(&objects, "Service")["spec"]["selector"],
        &of_kind(&objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        &of_kind(&objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ];
    for selector in selectors {
        let wanted = selector.as_object().unwrap();
        assert!(!wanted.is_empty() && wanted.iter().all(|(key, value)| labels[key] == *value), "{selector} {labels}");
    }
    let service = of_kind(&objects, "Service");
    assert_eq!(set["spec"]["serviceName"], service["metadata"]["name"]);
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], of_kind(&objects, "ServiceAccount")["metadata"]["name"]);

    // Every mount has its volume, and the state's outlives the pod.
    let names = |of: &Value| -> BTreeSet<String> {
        let of = of.as_array().into_iter().flatten();
        of.map(|one| one["name"].as_str().or(one["metadata"]["name"].as_str()).unwrap().to_owned()).collect()
    };
    let claims = names(&set["spec"]["volumeClaimTemplates"]);
    let volumes = &names(&pod["volumes"]) | &claims;
    let containers = [&pod["initContainers"][0], &pod["containers"][0]];
    let mounts = containers.iter().map(|container| names(&container["volumeMounts"]));
    assert_eq!(mounts.reduce(|all, more| &all | &more), Some(volumes));
    let session = containers[1];
    let mounted = session["volumeMounts"].as_array().unwrap().iter();
    let (of_claims, others): (Vec<&Value>, Vec<&Value>) =
        mounted.partition(|mount| claims.contains(mount["name"].as_str().unwrap()));
    let settings = of_kind(&objects, "ConfigMap");
    assert_eq!(
        of_claims.iter().map(|mount| &mount["mountPath"]).collect::<Vec<_>>(),
        [&settings["data"]["MOX_STATEDIR"]]
    );
    assert!(!others.is_empty());

    // What the init container copies is what the launcher loads.
    let command = session["command"].as_array().unwrap();
    let copied = pod["initContainers"][0]["command"][2].as_str().unwrap();
    assert!(command.contains(&json!(format!("-Dloader.path={copied}"))), "{command:?}");

    // Every variable is a setting.
    let reference = fs::read_to_string(root().join("docs/reference/configuration.md")).unwrap();
    let keys = reference.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(key, _)| key));
    let known: BTreeSet<String> = keys
        .chain(["mox.enabled", "mox.admin.token"])
        .map(|key| key.replace('-', "").replace('.', "_").to_uppercase())
        .collect();
    let secret = session["env"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap());
    let variables = settings["data"].as_object().unwrap().keys().map(String::as_str);
    for variable in variables.chain(secret.filter(|name| name.starts_with("MOX_"))) {
        assert!(known.contains(variable), "{variable} is no setting");
    }

    // The ports of the engine with these settings are those of the Service, and istiod may reach them.
    let partitions: u16 = settings["data"]["MOX_PARTITIONS"].as_str().unwrap().parse().unwrap();
    let ports: Vec<u16> =
        service["spec"]["ports"].as_array().unwrap().iter().map(|port| port["port"].as_u64().unwrap() as u16).collect();
    let expected: Vec<u16> = std::iter::once(9700).chain((0..partitions).map(|k| 9700 + partitions + k)).collect();
    assert_eq!(ports, expected);
    let opened = &of_kind(&objects, "NetworkPolicy")["spec"]["ingress"][0]["ports"][0];
    let opened = opened["port"].as_u64().unwrap() as u16..=opened["endPort"].as_u64().unwrap() as u16;
    assert!(ports.iter().all(|port| opened.contains(port)), "{opened:?} {ports:?}");

    // What istiod is told to connect to is that Service.
    let mesh = &documents(&root().join("deploy/kubernetes/mesh-config.yaml"))[0];
    let name = service["metadata"]["name"].as_str().unwrap();
    let sources = json!([{ "address": format!("xds://{name}.{NAMESPACE}.svc:9700") }, { "address": "k8s://" }]);
    assert_eq!(mesh["meshConfig"]["configSources"], sources);
}

/// What the pods' service account may do in a namespace, as the API server sees it.
fn rules(server: &Server, namespace: &str) -> BTreeSet<String> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": { "namespace": namespace },
    });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let (status, answer) = server.ask_as_session(Method::POST, path, &review.to_string());
    assert_eq!(status, 201, "{answer}");
    assert_eq!(answer["status"]["incomplete"], false);
    answer["status"]["resourceRules"].as_array().unwrap().iter().map(Value::to_string).collect()
}

fn the_rights_of_the_manifest_are_those_of_the_sink(server: &mut Server) {
    let manifest = fs::read_to_string(root().join("deploy/kubernetes/sink/rbac.yaml")).unwrap();
    let config = registry_mox::testing::config::Config::from_json(b"{}").unwrap();
    assert_eq!(manifest, registry_mox::testing::kubernetes::rbac(&config, false), "deploy/kubernetes/sink/rbac.yaml");

    make_namespace(server);
    let before = rules(server, NAMESPACE);
    let elsewhere = rules(server, "default");
    let objects = rendered("sink");
    for object in &objects {
        let (status, answer) = apply(server, object, "");
        assert!([200, 201].contains(&status), "{status} {answer}");
    }
    let rule = |verbs: Value, group: &str, resources: Value, names: Option<&str>| {
        let mut rule = json!({ "apiGroups": [group], "resources": resources, "verbs": verbs });
        if let Some(name) = names {
            rule["resourceNames"] = json!([name]);
        }
        rule.to_string()
    };
    let kinds = json!(["serviceentries", "workloadentries", "destinationrules"]);
    let expected = BTreeSet::from([
        rule(json!(["list", "watch", "create", "patch", "delete"]), "networking.istio.io", kinds, None),
        rule(json!(["get", "update"]), "coordination.k8s.io", json!(["leases"]), Some("registry-mox-default")),
        rule(json!(["create"]), "coordination.k8s.io", json!(["leases"]), None),
    ]);
    let after = harness::process::eventually(crate::server::PATIENCE, "RBAC takes effect", || {
        let after = rules(server, NAMESPACE);
        (after.difference(&before).count() >= expected.len()).then_some(after)
    });
    assert_eq!(after.difference(&before).cloned().collect::<BTreeSet<_>>(), expected, "no more than the sink needs");
    assert_eq!(rules(server, "default"), elsewhere, "nothing outside of its namespace");

    // No less: a service comes and goes, and so does its writer.
    let writer = Writer::open(&server.kubeconfig("session"), NAMESPACE);
    writer.publish("granted", 1, &["10.0.0.1:80"]);
    writer.loaded();
    writer.sync();
    assert_eq!(server.names(NAMESPACE, "serviceentries"), [object("granted")]);
    writer.unpublish("granted", 2);
    let report = writer.sync();
    assert_eq!((server.names(NAMESPACE, "serviceentries").len(), report.refused), (0, 0), "{report:?}");
    writer.close();
}

fn pods_are_seen_by_a_right_of_their_own(server: &mut Server) {
    let manifest = fs::read_to_string(root().join("deploy/kubernetes/visibility/rbac.yaml")).unwrap();
    let config = |json: &[u8]| registry_mox::testing::config::Config::from_json(json).unwrap();
    let of = |json: &[u8], pods| registry_mox::testing::kubernetes::rbac(&config(json), pods);
    assert_eq!(manifest, of(b"{}", true), "deploy/kubernetes/visibility/rbac.yaml");
    let both = of(br#"{"kubernetes":{"enabled":true,"owner":"o"}}"#, true);
    assert_eq!(
        both,
        of(br#"{"kubernetes":{"enabled":true,"owner":"o"}}"#, false) + "---\n" + &manifest.replace("-default", "-o")
    );

    let there = of(br#"{"namespace":"there"}"#, true);
    let names = |manifest: &str| -> Vec<String> {
        manifest.lines().filter_map(|line| Some(line.strip_prefix("  name: ")?.to_owned())).collect()
    };
    assert_eq!(names(&there), ["registry-mox-default-there-pods"; 2], "another registry has another");

    revoke_pods(server);
    make_namespace(server);
    let before = rules(server, NAMESPACE);
    grant_pods(server);
    let expected = json!({ "apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"] }).to_string();
    let after = harness::process::eventually(crate::server::PATIENCE, "RBAC takes effect", || {
        let after = rules(server, NAMESPACE);
        (after.len() > before.len()).then_some(after)
    });
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), [&expected], "no more than is needed");
}
