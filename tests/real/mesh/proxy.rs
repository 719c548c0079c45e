//! Views of the proxies and of istiod's name table.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
};

use harness::{
    SOON,
    client::{MoxClient, sidecar_node},
    http,
    process::{eventually_is, root},
};
use prost::Message;
use serde_json::Value;

use super::{CONSUMERS, ISTIOD_PORT, three};

/// A page of a proxy.
pub(super) fn admin(proxy: Ipv4Addr, path: &str) -> Option<String> {
    http::get((proxy, 19000), path)
}

pub(super) fn admin_json(proxy: Ipv4Addr, path: &str) -> Value {
    serde_json::from_str(&admin(proxy, path).unwrap()).unwrap()
}

/// Connections that a proxy made so far, by cluster.
pub(super) fn connections(proxy: Ipv4Addr) -> BTreeMap<String, u64> {
    let all = admin_json(proxy, "/stats?format=json&filter=upstream_cx_total");
    let count = |stat: &Value| {
        let name = stat["name"].as_str()?.strip_prefix("cluster.")?.strip_suffix(".upstream_cx_total")?;
        Some((name.trim_end_matches(';').to_owned(), stat["value"].as_u64()?))
    };
    all["stats"].as_array().unwrap().iter().filter_map(count).collect()
}

/// The connections that a proxy made since `before`, by cluster.
pub(super) fn connections_since(proxy: Ipv4Addr, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut all = connections(proxy);
    // The count of a cluster that went meanwhile and is back begins anew.
    all.iter_mut().for_each(|(name, count)| *count = count.saturating_sub(*before.get(name).unwrap_or(&0)));
    all.retain(|_, count| *count > 0);
    all
}

/// The sum of a statistic of a proxy whose name contains and ends with these.
pub(super) fn stat(proxy: Ipv4Addr, contains: &str, ends: &str) -> u64 {
    let all = admin_json(proxy, &format!("/stats?format=json&filter={ends}$"));
    let wanted = |stat: &&Value| stat["name"].as_str().is_some_and(|name| name.contains(contains));
    all["stats"].as_array().unwrap().iter().filter(wanted).filter_map(|stat| stat["value"].as_u64()).sum()
}

/// The addresses that a cluster of the consumers' Envoy has.
pub(super) fn hosts(cluster: &str) -> BTreeSet<String> {
    let all = admin_json(CONSUMERS, "/clusters?format=json");
    let clusters = all["cluster_statuses"].as_array().into_iter().flatten();
    let hosts = clusters.filter(|c| c["name"] == *cluster).flat_map(|c| c["host_statuses"].as_array()).flatten();
    hosts.map(|host| host["address"]["socket_address"]["address"].as_str().unwrap().to_owned()).collect()
}

/// Clusters and listeners of a proxy that are made from our entries, by host and by name.
pub(super) fn made(proxy: Ipv4Addr) -> (BTreeSet<String>, BTreeSet<String>) {
    let clusters = admin_json(proxy, "/clusters?format=json");
    let clusters = clusters["cluster_statuses"].as_array().into_iter().flatten();
    let hosts = clusters.filter_map(|c| c["name"].as_str()?.strip_prefix("outbound|")?.split('|').next_back());
    let listeners = admin_json(proxy, "/listeners?format=json");
    let listeners = listeners["listener_statuses"].as_array().into_iter().flatten();
    let listeners = listeners.filter_map(|l| l["name"].as_str().filter(|name| !name.starts_with("virtual")));
    (hosts.map(str::to_owned).collect(), listeners.map(str::to_owned).collect())
}

/// Waits for the consumers' Envoy to listen on the addresses of the three providers, or not to.
pub(super) fn wait_for_listeners(port: u16, there: bool) {
    let wanted: BTreeSet<_> =
        if there { three() } else { vec![] }.into_iter().map(|ip| format!("{ip}_{port}")).collect();
    eventually_is(&wanted, "listeners on providers' addresses", || {
        let all = made(CONSUMERS).1;
        all.into_iter().filter(|name| name.starts_with("10.50.0.") && name.ends_with(&format!("_{port}"))).collect()
    });
}

/// istiod's names and addresses for a proxy in namespace `sofa`: what its agent answers DNS queries from.
pub(super) fn name_table() -> BTreeMap<String, Vec<String>> {
    let node = sidecar_node(&CONSUMERS.to_string(), "names", "sofa", &[("DNS_CAPTURE", "true")]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let istiod = format!("{CONSUMERS}:{ISTIOD_PORT}");
    let table = async {
        let names = "type.googleapis.com/istio.networking.nds.v1.NameTable";
        let mut client = MoxClient::asking(&istiod, node, names).await?;
        client.next_raw().await
    };
    let response = runtime.block_on(async { tokio::time::timeout(SOON, table).await });
    let resources = response.expect("a name table in time").unwrap().resources;
    let tables = resources.iter().flat_map(|any| NameTable::decode(any.value.clone()).unwrap().table);
    tables.map(|(host, info)| (host, info.ips)).collect()
}

/// The same as a file of host names, in place of a DNS server.
pub(super) fn hosts_file() -> String {
    let mut text = format!("127.0.0.1 localhost {}\n", fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim());
    for (host, ips) in name_table() {
        ips.iter().for_each(|ip| text += &format!("{ip} {host}\n"));
    }
    let path = root().join("target/real/run/hosts");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// `istio.networking.nds.v1.NameTable`, as far as it is needed here.
#[derive(Clone, PartialEq, Message)]
struct NameTable {
    #[prost(btree_map = "string, message", tag = "1")]
    table: BTreeMap<String, NameInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct NameInfo {
    #[prost(string, repeated, tag = "1")]
    ips: Vec<String>,
}
