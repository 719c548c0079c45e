//! Checks of what the types of the settings let pass.
//!
//! Every struct is taken apart whole, so that a setting that is added and forgotten here does not compile.

use std::time::Duration;

use ipnet::IpNet;

use crate::{
    config::{
        Admin, Cluster, Config, Limits, MAX_RESPONSE, Protect, Push, TlsFiles,
        mistakes::{LABELS, Mistakes},
    },
    error::Mistake,
    istio::grammar::{KUBERNETES_NAMES, is_kubernetes_label, is_kubernetes_name},
    snapshot::partition::{MAX_PARTITIONS, Partition},
};

/// Most characters of the suffix, which leaves those of a host for the service.
const MAX_SUFFIX: usize = 100;

const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

const DAY: Duration = seconds(86_400);
const YEAR: Duration = seconds(365 * 86_400);

impl Config {
    pub(super) fn mistakes(&self) -> Vec<Mistake> {
        let Self {
            listen,
            partitions,
            tls,
            allow_cidrs: _,
            admin_listen: _,
            scope: _,
            cluster,
            host_suffix,
            namespace,
            endpoint_mode: _,
            vip_cidr,
            threads,
            push,
            protect,
            state_dir: _,
            limits,
            kubernetes,
            admin: Admin { token: _ },
            policy,
        } = self;
        let mut mistakes = Mistakes::default();
        check_partitions(listen.port(), partitions, &mut mistakes);
        tls.check(&mut mistakes);
        cluster.check(&mut mistakes);
        check_suffix(host_suffix, &mut mistakes);
        check_vips(vip_cidr, &mut mistakes);
        if !is_kubernetes_label(namespace) {
            mistakes.add("mox.namespace", format!("\"{namespace}\" is no DNS label; {LABELS}"));
        }
        mistakes.number("mox.threads", *threads, 1..=64);
        push.check(&mut mistakes);
        protect.check(&mut mistakes);
        limits.check(&mut mistakes);
        kubernetes.check(&mut mistakes);
        mistakes.0.extend(policy.mistakes("mox.policy", namespace));
        mistakes.0
    }
}

fn check_partitions(port: u16, partitions: &[usize], mistakes: &mut Mistakes) {
    for (index, count) in partitions.iter().enumerate() {
        if *count < 2 || Partition::new(0, *count).is_none() || partitions[..index].contains(count) {
            let allowed = format!("allowed are powers of two from 2 to {MAX_PARTITIONS}, each once");
            mistakes.add("mox.partitions", format!("{count} is not possible; {allowed}"));
        }
    }
    // Partition k of N has the port + N + k, which is at most that of `listen` + 2 N - 1.
    let most = partitions.iter().filter(|count| **count <= MAX_PARTITIONS).max();
    let highest = (1 << 16) - 2 * most.copied().unwrap_or_default();
    if port != 0 && usize::from(port) > highest {
        let text =
            format!("port {port} leaves no ports for mox.partitions above it; allowed are ports up to {highest}");
        mistakes.add("mox.listen", text);
    }
}

/// A service has one address of each range, and proxies of a family one of that family to call it by.
fn check_vips(ranges: &[IpNet], mistakes: &mut Mistakes) {
    for (name, is_v6) in [("IPv4", false), ("IPv6", true)] {
        let of_family = ranges.iter().filter(|range| range.addr().is_ipv6() == is_v6);
        let of_family: Vec<String> = of_family.map(IpNet::to_string).collect();
        if of_family.len() > 1 {
            let all = of_family.join(", ");
            let text = format!(
                "{all} are ranges of {name}, of which there may be one; keep one of them, and beside it at most one of the \
                 other family, as 248.0.0.0/6,fd00:f8::/64"
            );
            mistakes.add("mox.vipCidr", text);
        }
    }
}

fn check_suffix(suffix: &str, mistakes: &mut Mistakes) {
    let labels: Vec<&str> = suffix.split('.').collect();
    let ends_in_number = labels.last().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    let is_domain = labels.len() >= 2 && labels.iter().all(|label| is_kubernetes_label(label)) && !ends_in_number;
    if !is_domain || suffix.len() > MAX_SUFFIX {
        mistakes.add(
            "mox.hostSuffix",
            format!(
                "\"{suffix}\" is not possible; allowed are two or more lower-case DNS labels, the last no number, \
                 {MAX_SUFFIX} characters at most, as sofa.mesh"
            ),
        );
    } else if is_kubernetes_name(suffix) {
        mistakes.add("mox.hostSuffix", format!("\"{suffix}\" is not possible: {KUBERNETES_NAMES}"));
    }
}

impl TlsFiles {
    fn check(&self, mistakes: &mut Mistakes) {
        let Self { cert, key, client_ca } = self;
        match (cert, key) {
            (Some(cert), None) => mistakes.add(
                "mox.tls.key",
                format!("it is missing; set it to the key of mox.tls.cert, which is {cert:?}, or set neither"),
            ),
            (None, Some(key)) => mistakes.add(
                "mox.tls.cert",
                format!("it is missing; set it to the certificate of mox.tls.key, which is {key:?}, or set neither"),
            ),
            (None, None) if client_ca.is_some() => mistakes.add(
                "mox.tls.clientCa",
                "it needs TLS, which there is none of; set mox.tls.cert and mox.tls.key too, or leave it out"
                    .to_owned(),
            ),
            _ => {}
        }
    }
}

impl Cluster {
    fn check(&self, mistakes: &mut Mistakes) {
        let Self { debounce, reconcile, reads, sync_port } = self;
        mistakes.time("mox.cluster.debounce", *debounce, millis(0)..=seconds(10));
        mistakes.time("mox.cluster.reconcile", *reconcile, seconds(1)..=seconds(3_600));
        mistakes.number("mox.cluster.reads", *reads, 1..=1_000_000);
        mistakes.number("mox.cluster.syncPort", usize::from(*sync_port), 1..=65_535);
    }
}

impl Push {
    fn check(&self, mistakes: &mut Mistakes) {
        let Self { quiet, duty, max, prime: _ } = self;
        mistakes.time("mox.push.quiet", *quiet, millis(0)..=seconds(10));
        mistakes.time("mox.push.max", *max, millis(0)..=seconds(600));
        if !(0.001..=1.0).contains(duty) {
            mistakes.add("mox.push.duty", format!("{duty} is out of bounds; allowed are numbers from 0.001 to 1"));
        }
    }
}

impl Protect {
    fn check(&self, mistakes: &mut Mistakes) {
        let Self {
            startup_hold: _,
            empty_grace,
            mass_delete_share,
            mass_delete_services: _,
            mass_delete_endpoints: _,
            mass_delete_hold,
            mass_add_services: _,
            mass_add_share,
            mass_add_settle,
            mass_add_hold,
            last_good_max_age,
            max_staleness,
        } = self;
        mistakes.time("mox.protect.emptyGrace", *empty_grace, millis(0)..=YEAR);
        mistakes.number("mox.protect.massDeleteShare", *mass_delete_share, 0..=100);
        mistakes.time("mox.protect.massDeleteHold", *mass_delete_hold, millis(0)..=YEAR);
        if !(0.0..=10.0).contains(mass_add_share) {
            let text =
                format!("{mass_add_share} is out of bounds; allowed are 0 to 10, of which 0.5 is half of the services");
            mistakes.add("mox.protect.massAddShare", text);
        }
        mistakes.time("mox.protect.massAddSettle", *mass_add_settle, millis(0)..=YEAR);
        mistakes.time("mox.protect.massAddHold", *mass_add_hold, millis(0)..=YEAR);
        mistakes.time("mox.protect.lastGoodMaxAge", *last_good_max_age, millis(0)..=YEAR);
        mistakes.time("mox.protect.maxStaleness", *max_staleness, seconds(10)..=DAY);
    }
}

impl Limits {
    fn check(&self, mistakes: &mut Mistakes) {
        let Self {
            services,
            publishers,
            bytes,
            endpoints,
            endpoints_per_publisher,
            endpoints_per_service,
            sources,
            streams,
            streams_per_address,
            types,
            request,
            stream_bytes,
            streams_bytes,
            pinned_bytes,
            response,
        } = self;
        mistakes.number("mox.limits.services", *services, 1..=10_000_000);
        mistakes.number("mox.limits.publishers", *publishers, 1..=100_000_000);
        mistakes.number("mox.limits.bytes", *bytes, 1 << 20..=1 << 40);
        mistakes.number("mox.limits.endpoints", *endpoints, 1..=1_000_000_000);
        mistakes.number("mox.limits.endpointsPerPublisher", *endpoints_per_publisher, 1..=65_535);
        mistakes.number("mox.limits.endpointsPerService", *endpoints_per_service, 1..=1_000_000);
        mistakes.number("mox.limits.sources", *sources, 1..=1_024);
        mistakes.number("mox.limits.streams", *streams, 1..=100_000);
        mistakes.number("mox.limits.streamsPerAddress", *streams_per_address, 1..=100_000);
        mistakes.number("mox.limits.types", *types, 16..=1_024);
        mistakes.number("mox.limits.request", *request, 1 << 10..=256 << 20);
        mistakes.number("mox.limits.streamBytes", *stream_bytes, 64 << 10..=4 << 30);
        mistakes.number("mox.limits.streamsBytes", *streams_bytes, 1 << 20..=64 << 30);
        mistakes.number("mox.limits.pinnedBytes", *pinned_bytes, 1 << 20..=64 << 30);
        mistakes.number("mox.limits.response", *response, 1 << 10..=MAX_RESPONSE);
    }
}
