use super::*;
use crate::policy::document::Override;
use ipnet::IpNet;

fn read(json: &str) -> Result<Config> {
    Config::from_json(json.as_bytes())
}

fn error(json: &str) -> String {
    read(json).unwrap_err().to_string()
}

#[test]
fn nothing_given_is_the_defaults() {
    assert_eq!(read("{}").unwrap(), Config::default());
}

#[test]
fn spring_text_and_typed_json_mean_the_same() {
    let spring = read(
        r#"{"listen": "127.0.0.1:0", "host-suffix": "a.mesh", "threads": "4", "vip-cidr": "",
            "push": {"prime": "false", "QUIET": "5ms"}, "protect": {"startup-hold": "2s", "emptygrace": "1m"},
            "policy": {"include": "com.*, org.*", "labels": {"0": "x", "1": "y"}, "ports": {"bolt": "12300"},
                       "endpoints": {"allow-loopback": "TRUE", "deny": "10.0.0.0/8"}}}"#,
    );
    let json = read(
        r#"{"listen": "127.0.0.1:0", "hostSuffix": "a.mesh", "threads": 4, "vipCidr": null,
            "push": {"prime": false, "quiet": "5ms"}, "protect": {"startupHold": "2s", "emptyGrace": "60s"},
            "policy": {"include": ["com.*", "org.*"], "labels": ["x", "y"], "ports": {"bolt": 12300},
                       "endpoints": {"allowLoopback": true, "deny": ["10.0.0.0/8"]}}}"#,
    );
    assert_eq!(spring.unwrap(), json.unwrap());
}

#[test]
fn partitions_and_pacing_are_read_from_text_too() {
    let spring = read(r#"{"partitions": {"0": "16", "1": "64"}, "push": {"duty": "0.25", "max": "1s"}}"#).unwrap();
    let text = read(r#"{"partitions": "16, 64", "push": {"duty": 0.25, "max": "1s"}}"#).unwrap();
    assert_eq!((&spring, spring.partitions.as_slice()), (&text, &[16, 64][..]));
}

#[test]
fn virtual_addresses_are_of_one_range_or_of_one_of_each_family() {
    let ranges = |given: &str| read(&format!(r#"{{"vip-cidr": {given}}}"#)).map(|config| config.vip_cidr);
    let both: Vec<IpNet> = ["248.0.0.0/6", "fd00:f8::/64"].map(|range| range.parse().unwrap()).into();
    for given in [
        r#""248.0.0.0/6,fd00:f8::/64""#,
        r#"["248.0.0.0/6", "fd00:f8::/64"]"#,
        r#"{"0": "248.0.0.0/6", "1": "fd00:f8::/64"}"#,
    ] {
        assert_eq!(ranges(given).unwrap(), both, "{given}");
    }
    assert_eq!(ranges(r#""fd00:f8::/64""#).unwrap(), both[1..]);
    for (given, family) in [("10.0.0.0/8, 248.0.0.0/6", "IPv4"), ("fd00:f8::/64,248.0.0.0/6,fd00:f9::/64", "IPv6")] {
        let text = ranges(&format!("\"{given}\"")).unwrap_err().to_string();
        assert!(text.contains("mox.vip-cidr") && text.contains(&format!("are ranges of {family}")), "{text}");
        assert!(text.contains("keep one of them"), "{text}");
    }
}

#[test]
fn a_token_is_compared_and_never_shown() {
    let config = read(r#"{"admin": {"token": "open sesame"}}"#).unwrap();
    let token = config.admin.token.clone().unwrap();
    assert!(token.is("open sesame") && !token.is("open sesam") && !token.is(""));
    assert!(!Secret(String::new()).is(""), "an empty one lets nobody in");
    let shown = format!("{config:?}{}", serde_json::to_string(&config).unwrap());
    assert!(!shown.contains("sesame"), "{shown}");
}

#[test]
fn mtls_rules_are_read_as_spring_hands_them_on() {
    let spring = read(
        r#"{"policy": {"mtls": {"0": {"applications": {"0": "orders", "1": "shop"}},
                                "1": {"CIDRS": "10.0.0.0/8,11.0.0.0/8", "zones": "RZ1"}}}}"#,
    );
    let json = read(
        r#"{"policy": {"mtls": [{"applications": ["orders", "shop"]},
                                {"cidrs": ["10.0.0.0/8", "11.0.0.0/8"], "zones": ["RZ1"]}]}}"#,
    );
    assert_eq!(spring.unwrap(), json.unwrap());
}

/// Spring takes the dots of a key for levels, but for what stands in brackets, which it takes away.
#[test]
fn keys_of_the_operators_own_are_kept_as_they_are() {
    let spring = read(
        r#"{"policy": {"locality": {"zone.a-1": "cn/a", "RZ_1": "cn/b"}, "ports": {"h2c": "1", "H-2": "2"},
                       "overrides": {"com.example.Demo*:1.0@tri*": {"dns": "true", "export-to": {"0": "."}}}}}"#,
    );
    let json = read(
        r#"{"policy": {"locality": {"zone.a-1": "cn/a", "RZ_1": "cn/b"}, "ports": {"h2c": 1, "H-2": 2},
                       "overrides": {"[com.example.Demo*:1.0@tri*]": {"dns": true, "exportTo": ["."]}}}}"#,
    );
    let policy = spring.unwrap().policy;
    assert_eq!(policy, json.unwrap().policy);
    assert_eq!(policy.locality.keys().collect::<Vec<_>>(), ["RZ_1", "zone.a-1"]);
    assert_eq!(policy.ports.keys().collect::<Vec<_>>(), ["H-2", "h2c"]);
    assert_eq!(policy.overrides.keys().collect::<Vec<_>>(), ["com.example.Demo*:1.0@tri*"]);
}

/// A list is then empty, in an override too, which differs from an override without that list.
#[test]
fn what_is_set_to_an_empty_text_is_set_to_nothing() {
    let text = |(key, value): (&str, &str)| format!(r#"{{{key}: {value}}}"#);
    for (key, given) in [
        ("adminListen", "\"\""),
        ("vipCidr", "\" \""),
        ("stateDir", "\"\""),
        ("vipCidr", "null"),
        ("tls", r#"{"cert": "", "key": null, "client-ca": " "}"#),
        ("admin", r#"{"token": ""}"#),
        ("kubernetes", r#"{"kubeconfig": "", "context": "", "namespace": "", "lease-namespace": ""}"#),
        ("allowCidrs", "\"\""),
        ("partitions", "\" , \""),
    ] {
        let config = read(&text((&format!("\"{key}\""), given))).unwrap();
        let vip_cidr = if key == "vipCidr" { Vec::new() } else { Config::default().vip_cidr };
        assert_eq!(config, Config { vip_cidr, ..Config::default() }, "{key}");
    }
    let overrides = r#"{"policy": {"include": "", "locality": "", "overrides": {"a*": {"labels": "", "exportTo": []},
                                   "b*": {"labels": null, "host": "", "port": " "}}}}"#;
    let policy = read(overrides).unwrap().policy;
    let a = Override { labels: Some(Vec::new()), export_to: Some(Vec::new()), ..Override::default() };
    assert_eq!((&policy.overrides["a*"], &policy.overrides["b*"]), (&a, &Override::default()));
    assert!(policy.include.is_empty() && policy.locality.is_empty());
}

#[test]
fn a_program_has_defaults_of_its_own() {
    let defaults = Config { threads: 7, admin_listen: Some(([127, 0, 0, 1], 0).into()), ..Config::default() };
    let given = r#"{"admin-listen": "127.0.0.2:0", "push": {"QUIET": "9ms"}}"#;
    let config = Config::from_json_over(&defaults, given.as_bytes()).unwrap();
    let push = Push { quiet: Duration::from_millis(9), ..Push::default() };
    let admin_listen = Some(([127, 0, 0, 2], 0).into());
    assert_eq!(config, Config { push, admin_listen, ..defaults });
}

#[test]
fn a_bad_policy_is_refused_with_every_mistake() {
    let document = serde_json::json!({
        "includes": ["a"],
        "exclude": 7,
        "exportTo": ["*", "a"],
        "ports": {"bolt": 0, "tri": 70_000, "rest": "x", "a://b": 1},
        "labels": [5, "ok", true, "istio.io/rev"],
        "locality": {"RZ1": "a//b", "zone.b": 1},
        "endpoints": {"deny": ["nonsense", "10.0.0.0/8", "10.0.0.0/40"], "allowLoopback": "maybe"},
        "mtls": [{"cidrs": ["x"], "zones": ["a"]}, {"applications": "a", "zone": "b"}, 3, {},
                 {"cidrs": ["10.0.0.0/8", "y"], "identities": "z"}],
        "direct": {"balance": "nobody", "linger": "11m", "overrides": {"x*": {"exportTo": ["*", "a"], "linger": "1s", "warmup": "2d"}}},
        "overrides": {"x*": {"host": "A", "dns": "perhaps", "prot": 1, "warmup": "999ms"}, "z": {"warmup": "soon"}, "y/z": {"port": -1}},
    });
    let text = policy_from_json(document, "ns").unwrap_err().to_string();
    let told: Vec<&str> = text.lines().map(|line| line.split(": ").next().unwrap()).collect();
    let read = [
        "direct.balance",
        "direct.overrides[x*].linger",
        "endpoints.allowLoopback",
        "endpoints.deny[0]",
        "endpoints.deny[2]",
        "exclude",
        "includes",
        "labels[0]",
        "labels[2]",
        "locality[zone.b]",
        "mtls[0].cidrs[0]",
        "mtls[1].zone",
        "mtls[2]",
        "mtls[4].cidrs[1]",
        "overrides[x*].dns",
        "overrides[x*].prot",
        "overrides[y/z].port",
        "overrides.z.warmup",
        "ports.rest",
        "ports.tri",
    ];
    let checked = [
        "direct.linger",
        "direct.overrides[x*].exportTo",
        "direct.overrides[x*].warmup",
        "exportTo",
        "labels",
        "locality.RZ1",
        "mtls[3]", // not 2, which it would be without the one that is left out
        "mtls[4].identities",
        "overrides[x*].host",
        "overrides[x*].warmup",
        "ports.bolt",
        "ports[a://b]",
    ];
    let mut wrong: Vec<String> = read.iter().chain(&checked).map(|key| format!("policy.{key}")).collect();
    let mut told: Vec<String> = told.into_iter().map(str::to_owned).collect();
    wrong.sort();
    told.sort();
    assert_eq!(told, wrong, "{text}");
}

/// Each message with the tree that it is about, as Spring hands it on or as JSON has it.
#[test]
fn a_mistake_is_told_with_key_value_and_remedy() {
    const PORTS: &str = "allowed is a whole number from 0 to 65535";
    const RANGE: &str = "allowed is a range of addresses, as 10.0.0.0/8, or 10.1.2.3/32 for a single one";
    const TIME: &str = "allowed is a duration, as 250ms, 10s, 5m or 1h";
    const LABEL: &str = "allowed are 1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends";
    const SUFFIX: &str = "allowed are two or more lower-case DNS labels, the last no number, 100 characters at most, as \
                          sofa.mesh";
    const HOST: &str = "allowed are two or more lower-case DNS labels, the last no number, as demo.example.com";
    const OF_KUBERNETES: &str = "names under svc.* and cluster.local are those of Kubernetes Services, whose traffic it \
                                 would take; choose a domain of your own, as sofa.mesh";
    const PARTITIONS: &str = "allowed are powers of two from 2 to 128, each once";
    let long = format!("{}.a", ["b"; 50].join("."));
    let table: &[(&str, &str)] = &[
        // Trees of another shape.
        ("{", "mox: this is no JSON: EOF while parsing an object at line 1 column 1"),
        (
            r#"{"push": "1s"}"#,
            "mox.push: a text is not possible; allowed is a group of the keys quiet, duty, max, prime",
        ),
        (r#"{"tls": null}"#, "mox.tls: null is not possible; allowed is a group of the keys cert, key, clientCa"),
        (
            r#"{"policy": {"ports": 5}}"#,
            "mox.policy.ports: a number is not possible; allowed is a group of keys of your own",
        ),
        // Keys.
        (r#"{"lisen": "x"}"#, "mox.lisen: unknown key; did you mean listen?"),
        (r#"{"hostSufix": "x"}"#, "mox.hostSufix: unknown key; did you mean hostSuffix?"),
        (r#"{"protect": {"start-hold": "1s"}}"#, "mox.protect.start-hold: unknown key; did you mean startup-hold?"),
        (r#"{"kubernetes": {"kube-cfg": "A"}}"#, "mox.kubernetes.kube-cfg: unknown key; did you mean kubeconfig?"),
        (r#"{"tls": {"ca-file": "A"}}"#, "mox.tls.ca-file: unknown key; known are cert, key, client-ca"),
        (r#"{"tls": {"authority": "A"}}"#, "mox.tls.authority: unknown key; known are cert, key, clientCa"),
        (
            r#"{"policy": {"mtls": [{"zone": "a", "zones": "b"}]}}"#,
            "mox.policy.mtls[0].zone: unknown key; did you mean zones?",
        ),
        (
            r#"{"policy": {"overrides": {"com.example.*": {"prot": 1}}}}"#,
            "mox.policy.overrides[com.example.*].prot: unknown key; did you mean port?",
        ),
        (
            r#"{"policy": {"overrides": {"com": {"example": {"dns": "true"}}}}}"#,
            "mox.policy.overrides.com.example: unknown key; known are host, port, protocol, exportTo, dns, labels, warmup, visibility; a key \
             that has dots stands in brackets, as mox.policy.overrides[a.b]",
        ),
        (
            r#"{"policy": {"locality": {"zone": {"a": "cn/a"}}}}"#,
            "mox.policy.locality.zone: a group of keys is not possible; allowed is a text; a key that has dots stands in \
             brackets, as mox.policy.locality[a.b]",
        ),
        (
            r#"{"policy": {"export-to": {"0": "a", "b": "c"}}}"#,
            "mox.policy.export-to.b: unknown key; mox.policy.export-to is a list, so its keys are 0, 1 and so on",
        ),
        (
            r#"{"host-suffix": "a.b", "hostSuffix": "c.d"}"#,
            "mox.hostSuffix: it has another value as mox.host-suffix; keep one of them",
        ),
        // Values of the wrong type.
        (
            r#"{"listen": 9700}"#,
            "mox.listen: 9700 is not possible; allowed is an IP address with a port, as 0.0.0.0:9700",
        ),
        (
            r#"{"listen": "nowhere"}"#,
            "mox.listen: \"nowhere\" is not possible; allowed is an IP address with a port, as 0.0.0.0:9700",
        ),
        (r#"{"vip-cidr": "248.0.0.0/60"}"#, &format!("mox.vip-cidr[0]: \"248.0.0.0/60\" is not possible; {RANGE}")),
        (r#"{"allowCidrs": ["10.0.0.1"]}"#, &format!("mox.allowCidrs[0]: \"10.0.0.1\" is not possible; {RANGE}")),
        (
            r#"{"allowCidrs": 5}"#,
            "mox.allowCidrs: 5 is not possible; allowed is a list, or its items as a text with commas",
        ),
        (
            r#"{"protect": {"startup-hold": "soon"}}"#,
            &format!("mox.protect.startup-hold: \"soon\" is not possible; {TIME}"),
        ),
        (r#"{"push": {"quiet": 5}}"#, &format!("mox.push.quiet: 5 is not possible; {TIME}")),
        (r#"{"threads": "many"}"#, "mox.threads: \"many\" is not possible; allowed is a whole number from 0 on"),
        (r#"{"threads": -1}"#, "mox.threads: -1 is not possible; allowed is a whole number from 0 on"),
        (r#"{"partitions": "16, x"}"#, "mox.partitions[1]: \"x\" is not possible; allowed is a whole number from 0 on"),
        (
            r#"{"policy": {"ports": {"bolt": 70000}}}"#,
            &format!("mox.policy.ports.bolt: 70000 is not possible; {PORTS}"),
        ),
        (r#"{"push": {"duty": "half"}}"#, "mox.push.duty: \"half\" is not possible; allowed is a number"),
        (r#"{"push": {"prime": "maybe"}}"#, "mox.push.prime: \"maybe\" is not possible; allowed is true or false"),
        (r#"{"scope": "all"}"#, "mox.scope: \"all\" is not possible; allowed is cluster or local"),
        (r#"{"endpoint-mode": 5}"#, "mox.endpoint-mode: 5 is not possible; allowed is inline or workload-entry"),
        (r#"{"admin": {"token": 123456}}"#, "mox.admin.token: a number is not possible; allowed is a text"),
        (r#"{"stateDir": ["a"]}"#, "mox.stateDir: a list is not possible; allowed is a text"),
        (r#"{"policy": {"labels": [true]}}"#, "mox.policy.labels[0]: a boolean is not possible; allowed is a text"),
        // Values out of bounds.
        (r#"{"threads": 0}"#, "mox.threads: 0 is out of bounds; allowed are 1 to 64"),
        (r#"{"push": {"quiet": "20s"}}"#, "mox.push.quiet: 20s is out of bounds; allowed are 0s to 10s"),
        (r#"{"push": {"MAX": "700s"}}"#, "mox.push.MAX: 700s is out of bounds; allowed are 0s to 10m"),
        (r#"{"push": {"duty": "0"}}"#, "mox.push.duty: 0 is out of bounds; allowed are numbers from 0.001 to 1"),
        (
            r#"{"push": {"duty": 0.0009}}"#,
            "mox.push.duty: 0.0009 is out of bounds; allowed are numbers from 0.001 to 1",
        ),
        (r#"{"push": {"duty": 1.5}}"#, "mox.push.duty: 1.5 is out of bounds; allowed are numbers from 0.001 to 1"),
        (r#"{"push": {"duty": "NaN"}}"#, "mox.push.duty: NaN is out of bounds; allowed are numbers from 0.001 to 1"),
        (r#"{"cluster": {"debounce": "11s"}}"#, "mox.cluster.debounce: 11s is out of bounds; allowed are 0s to 10s"),
        (r#"{"cluster": {"reconcile": "9ms"}}"#, "mox.cluster.reconcile: 9ms is out of bounds; allowed are 1s to 1h"),
        (r#"{"cluster": {"reads": 0}}"#, "mox.cluster.reads: 0 is out of bounds; allowed are 1 to 1000000"),
        (r#"{"cluster": {"sync-port": "0"}}"#, "mox.cluster.sync-port: 0 is out of bounds; allowed are 1 to 65535"),
        (
            r#"{"protect": {"emptyGrace": "9y"}}"#,
            "mox.protect.emptyGrace: 78894h is out of bounds; allowed are 0s to 365d",
        ),
        (
            r#"{"protect": {"mass-delete-share": "101"}}"#,
            "mox.protect.mass-delete-share: 101 is out of bounds; allowed are 0 to 100",
        ),
        (
            r#"{"protect": {"massdeletehold": "366d"}}"#,
            "mox.protect.massdeletehold: 366d is out of bounds; allowed are 0s to 365d",
        ),
        (
            r#"{"protect": {"mass-add-share": 50}}"#,
            "mox.protect.mass-add-share: 50 is out of bounds; allowed are 0 to 10, of which 0.5 is half of the services",
        ),
        (
            r#"{"protect": {"massAddHold": "366d"}}"#,
            "mox.protect.massAddHold: 366d is out of bounds; allowed are 0s to 365d",
        ),
        (
            r#"{"protect": {"mass-add-settle": "366d"}}"#,
            "mox.protect.mass-add-settle: 366d is out of bounds; allowed are 0s to 365d",
        ),
        (
            r#"{"protect": {"last-good-max-age": "366d"}}"#,
            "mox.protect.last-good-max-age: 366d is out of bounds; allowed are 0s to 365d",
        ),
        (
            r#"{"protect": {"maxStaleness": "5s"}}"#,
            "mox.protect.maxStaleness: 5s is out of bounds; allowed are 10s to 1d",
        ),
        (r#"{"limits": {"services": 0}}"#, "mox.limits.services: 0 is out of bounds; allowed are 1 to 10000000"),
        (r#"{"limits": {"publishers": 0}}"#, "mox.limits.publishers: 0 is out of bounds; allowed are 1 to 100000000"),
        (r#"{"limits": {"bytes": 9}}"#, "mox.limits.bytes: 9 is out of bounds; allowed are 1048576 to 1099511627776"),
        (r#"{"limits": {"endpoints": 0}}"#, "mox.limits.endpoints: 0 is out of bounds; allowed are 1 to 1000000000"),
        (
            r#"{"limits": {"endpoints-per-publisher": 65536}}"#,
            "mox.limits.endpoints-per-publisher: 65536 is out of bounds; allowed are 1 to 65535",
        ),
        (
            r#"{"limits": {"endpointsPerService": 0}}"#,
            "mox.limits.endpointsPerService: 0 is out of bounds; allowed are 1 to 1000000",
        ),
        (r#"{"limits": {"sources": 0}}"#, "mox.limits.sources: 0 is out of bounds; allowed are 1 to 1024"),
        (r#"{"limits": {"streams": 0}}"#, "mox.limits.streams: 0 is out of bounds; allowed are 1 to 100000"),
        (
            r#"{"limits": {"streams-per-address": 0}}"#,
            "mox.limits.streams-per-address: 0 is out of bounds; allowed are 1 to 100000",
        ),
        (r#"{"limits": {"types": 9}}"#, "mox.limits.types: 9 is out of bounds; allowed are 16 to 1024"),
        (r#"{"limits": {"request": 9}}"#, "mox.limits.request: 9 is out of bounds; allowed are 1024 to 268435456"),
        (r#"{"limits": {"response": 9}}"#, "mox.limits.response: 9 is out of bounds; allowed are 1024 to 2146435071"),
        (r#"{"kubernetes": {"lease": "1s"}}"#, "mox.kubernetes.lease: 1s is out of bounds; allowed are 3s to 1h"),
        (
            r#"{"kubernetes": {"concurrency": 0}}"#,
            "mox.kubernetes.concurrency: 0 is out of bounds; allowed are 1 to 256",
        ),
        (r#"{"kubernetes": {"rate": 0}}"#, "mox.kubernetes.rate: 0 is out of bounds; allowed are 1 to 10000"),
        (r#"{"partitions": [3]}"#, &format!("mox.partitions: 3 is not possible; {PARTITIONS}")),
        (r#"{"partitions": [64, 64]}"#, &format!("mox.partitions: 64 is not possible; {PARTITIONS}")),
        (
            r#"{"listen": "0.0.0.0:65500", "partitions": [64]}"#,
            "mox.listen: port 65500 leaves no ports for mox.partitions above it; allowed are ports up to 65408",
        ),
        // Names.
        (r#"{"host-suffix": "mesh"}"#, &format!("mox.host-suffix: \"mesh\" is not possible; {SUFFIX}")),
        (r#"{"host-suffix": "A.b"}"#, &format!("mox.host-suffix: \"A.b\" is not possible; {SUFFIX}")),
        (r#"{"host-suffix": "a.1"}"#, &format!("mox.host-suffix: \"a.1\" is not possible; {SUFFIX}")),
        (&format!(r#"{{"host-suffix": "{long}"}}"#), &format!("mox.host-suffix: \"{long}\" is not possible; {SUFFIX}")),
        (
            r#"{"hostSuffix": "cluster.local"}"#,
            &format!("mox.hostSuffix: \"cluster.local\" is not possible: {OF_KUBERNETES}"),
        ),
        (r#"{"namespace": "A"}"#, &format!("mox.namespace: \"A\" is no DNS label; {LABEL}")),
        (
            r#"{"kubernetes": {"name-space": "A"}}"#,
            &format!("mox.kubernetes.name-space: \"A\" is no DNS label; {LABEL}"),
        ),
        (
            r#"{"kubernetes": {"lease-namespace": "A"}}"#,
            &format!("mox.kubernetes.lease-namespace: \"A\" is no DNS label; {LABEL}"),
        ),
        (
            r#"{"kubernetes": {"owner": "a.b"}}"#,
            &format!("mox.kubernetes.owner: \"a.b\" is not possible; {LABEL}, 40 characters at most"),
        ),
        (
            r#"{"policy": {"overrides": {"a\nb": {"host": "c\n\td"}}}}"#,
            &format!("mox.policy.overrides[a\u{fffd}b].host: \"c\u{fffd}\u{fffd}d\" is not possible; {HOST}"),
        ),
        // Settings that need others.
        (
            r#"{"tls": {"cert": "a.pem"}}"#,
            "mox.tls.key: it is missing; set it to the key of mox.tls.cert, which is \"a.pem\", or set neither",
        ),
        (
            r#"{"tls": {"key": "b.pem", "client-ca": "c.pem"}}"#,
            "mox.tls.cert: it is missing; set it to the certificate of mox.tls.key, which is \"b.pem\", or set neither",
        ),
        (
            r#"{"tls": {"client-ca": "c.pem"}}"#,
            "mox.tls.client-ca: it needs TLS, which there is none of; set mox.tls.cert and mox.tls.key too, or leave it out",
        ),
        // The policy.
        (
            r#"{"policy": {"export-to": "*, a"}}"#,
            "mox.policy.export-to: \"*\" is not possible in \"*, a\", in namespace sofa-registry; exportTo is \"*\" or \
             \"~\" alone, or \".\" and namespaces, each once and the own one as \".\" or by name",
        ),
        (
            r#"{"policy": {"exportTo": "A"}}"#,
            "mox.policy.exportTo: \"A\" is no namespace; names of namespaces are in lower case",
        ),
        (r#"{"policy": {"ports": {"bolt": "0"}}}"#, "mox.policy.ports.bolt: 0 is no port; allowed are 1 to 65535"),
        (
            r#"{"policy": {"ports": {"bolt!": 1}}}"#,
            "mox.policy.ports[bolt!]: \"bolt!\" is no protocol; allowed are bolt, dubbo, grpc, h2c, http, rest, tr, tri, triple, \
             and names of your own: letters, digits, '+', '-', '.' and '_', a letter first",
        ),
        (
            r#"{"policy": {"ports": {"BOLT": 1, "bolt": 2}}}"#,
            "mox.policy.ports.bolt: \"bolt\" stands there twice, since case does not count; leave one of them out",
        ),
        (
            r#"{"policy": {"ports": {"DEFAULT": 1}}}"#,
            "mox.policy.ports.DEFAULT: \"DEFAULT\" is no protocol of its own but bolt's usual name; say bolt",
        ),
        (
            r#"{"policy": {"labels": "istio.io/rev"}}"#,
            "mox.policy.labels: \"istio.io/rev\" cannot be a label: names under istio.io, kubernetes.io and sofa.registry \
             steer the mesh; leave it out",
        ),
        (
            r#"{"policy": {"labels": "-a"}}"#,
            "mox.policy.labels: \"-a\" cannot be a label: it needs 1 to 63 letters, digits, '-', '_' or '.', its prefix included, with a letter \
             or digit at both ends",
        ),
        (
            r#"{"policy": {"labels": "app"}}"#,
            "mox.policy.labels: \"app\" cannot be a label: \"app\" and \"zone\" are always made; leave it out",
        ),
        (
            r#"{"policy": {"locality": {"zone.a": "a//b"}}}"#,
            "mox.policy.locality[zone.a]: \"a//b\" is no locality; allowed are region, region/zone and \
             region/zone/subzone of 1 to 63 letters, digits, '-', '_' and '.' each",
        ),
        (
            r#"{"policy": {"mtls": {"0": {"identities": "spiffe://a/ns/b/sa/c"}}}}"#,
            "mox.policy.mtls[0]: it names no applications, cidrs or zones; to match all, say applications: [\"*\"]",
        ),
        (
            r#"{"policy": {"mtls": [{"zones": "a", "identities": "b"}]}}"#,
            "mox.policy.mtls[0].identities: \"b\" is no identity; allowed are spiffe://<trust domain>/ns/<namespace>/sa/\
             <service account>",
        ),
        (
            r#"{"policy": {"overrides": {"a.*": {"host": "A.b"}}}}"#,
            &format!("mox.policy.overrides[a.*].host: \"A.b\" is not possible; {HOST}"),
        ),
        (
            r#"{"policy": {"overrides": {"a.*": {"host": "kubernetes.default.svc.cluster.local"}}}}"#,
            &format!(
                "mox.policy.overrides[a.*].host: \"kubernetes.default.svc.cluster.local\" is not possible: {OF_KUBERNETES}"
            ),
        ),
        (
            r#"{"policy": {"overrides": {"a.*": {"port": "0"}}}}"#,
            "mox.policy.overrides[a.*].port: 0 is no port; allowed are 1 to 65535",
        ),
        (
            r#"{"policy": {"overrides": {"a": {"protocol": "bolt"}}}}"#,
            "mox.policy.overrides.a.protocol: \"bolt\" is not possible: a protocol is empty or one of TCP, UDP, GRPC, \
             GRPC-Web, HTTP, HTTP_PROXY, HTTP2, HTTPS, TLS, Mongo, Redis and MySQL",
        ),
        (
            r#"{"policy": {"overrides": {"a.*": {"export-to": "~, ~"}}}}"#,
            "mox.policy.overrides[a.*].export-to: \"~\" is not possible in \"~, ~\", in namespace sofa-registry; exportTo \
             is \"*\" or \"~\" alone, or \".\" and namespaces, each once and the own one as \".\" or by name",
        ),
        (
            r#"{"policy": {"overrides": {"a.*": {"labels": "zone"}}}}"#,
            "mox.policy.overrides[a.*].labels: \"zone\" cannot be a label: \"app\" and \"zone\" are always made; leave it out",
        ),
    ];
    let wrong: Vec<String> = table
        .iter()
        .map(|(json, says)| (error(json), says))
        .filter(|(told, says)| told != *says)
        .map(|(told, says)| format!("told: {told}\nnot:  {says}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn names_of_kubernetes_are_no_hosts() {
    let suffix = |name: &str| read(&format!(r#"{{"hostSuffix": "{name}"}}"#));
    let host = |name: &str| read(&format!(r#"{{"policy": {{"overrides": {{"a": {{"host": "{name}"}}}}}}}}"#));
    for name in
        ["cluster.local", "a.cluster.local", "svc.cluster.local", "svc.example", "a.b.svc.example", "default.svc"]
    {
        assert!(suffix(name).is_err() && host(name).is_err(), "{name}");
    }
    for name in ["sofa.mesh", "my-cluster.local", "a.local", "cluster.local.example", "svc-a.example", "mysvc.example"]
    {
        assert!(suffix(name).is_ok() && host(name).is_ok(), "{name}");
    }
}
