//! Prints what istiod receives from a MoX server, as it changes.
//!
//! `cargo run -p registry-mox-harness --example watch -- [HOST:PORT]`, by default `127.0.0.1:9700`. The client connects as istiod does, keeps
//! what it has while the server is away, and connects again.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    process::ExitCode,
    time::{Duration, Instant},
};

use harness::client::{self, MoxClient, Resource, SERVICE_ENTRY, State, istiod_node};

const RECONNECT: Duration = Duration::from_secs(1);

/// Endpoints of an entry with what is shown of each.
fn endpoints(resource: &Resource) -> BTreeMap<String, String> {
    let shown = resource.entry.endpoints.iter().map(|endpoint| {
        let mut text: Vec<String> = endpoint.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        if endpoint.weight > 0 {
            text.push(format!("weight={}", endpoint.weight));
        }
        text.join(" ")
    });
    resource.endpoints().into_iter().zip(shown).collect()
}

/// A line for a service: host, port, VIP, version.
fn service(resource: &Resource) -> String {
    let entry = &resource.entry;
    let host = entry.hosts.first().map_or("(no host)", String::as_str);
    let ports = entry.ports.iter().map(|port| format!("{} {} ({})", port.number, port.protocol, port.name));
    let version = &resource.version[..resource.version.len().min(8)];
    let empty = if resource.labels.contains_key("sofa.registry/empty") { "  empty, kept for a while" } else { "" };
    let ports: Vec<String> = ports.collect();
    format!("{host}  {}  vip {}  version {version}{empty}", ports.join(", "), entry.addresses.join(", "))
}

/// The changes between two states, a line each; nothing for equal states.
fn changes(before: &State, after: &State) -> Vec<String> {
    let mut lines = Vec::new();
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names {
        let (old, new) = (before.get(name), after.get(name));
        match (old, new) {
            (Some(old), Some(new)) if old == new => continue,
            (None, Some(new)) => lines.push(format!("+ {}", service(new))),
            (Some(_), Some(new)) => lines.push(format!("~ {}", service(new))),
            (Some(old), None) => lines.push(format!("- {}", service(old))),
            (None, None) => {}
        }
        let (old, new) = (old.map(endpoints).unwrap_or_default(), new.map(endpoints).unwrap_or_default());
        for (address, shown) in &new {
            match old.get(address) {
                None => lines.push(format!("    + {address}  {shown}")),
                Some(was) if was != shown => lines.push(format!("    ~ {address}  {shown}")),
                Some(_) => {}
            }
        }
        let gone = old.keys().filter(|address| !new.contains_key(*address));
        lines.extend(gone.map(|address| format!("    - {address}")));
    }
    lines
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever closed the pipe has seen enough.
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::abort();
    }
}

async fn watch(address: &str, start: Instant, state: &mut Option<State>) -> client::Result<()> {
    let mut client = MoxClient::connect(address, istiod_node()).await?;
    say(&format!("{:8.3}s  connected to {address}", start.elapsed().as_secs_f64()));
    client.subscribe(SERVICE_ENTRY)?;
    loop {
        let response = client.next().await?;
        if response.type_url != SERVICE_ENTRY {
            continue;
        }
        let now = client.state();
        let lines = changes(state.as_ref().unwrap_or(&State::new()), now);
        let total: usize = now.values().map(|resource| resource.entry.endpoints.len()).sum();
        if state.is_none() || !lines.is_empty() {
            let version = &response.version_info[..response.version_info.len().min(8)];
            let elapsed = start.elapsed().as_secs_f64();
            say(&format!("{elapsed:8.3}s  {} services, {total} endpoints, set {version}", now.len()));
            lines.iter().for_each(|line| say(&format!("           {line}")));
        }
        *state = Some(now.clone());
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let address = match (std::env::args().nth(1), std::env::args().nth(2)) {
        (None, _) => "127.0.0.1:9700".to_owned(),
        (Some(address), None) if !address.starts_with('-') => address,
        _ => {
            eprintln!("usage: watch [HOST:PORT]");
            return ExitCode::FAILURE;
        }
    };
    let (start, mut state) = (Instant::now(), None);
    let mut said = String::new();
    loop {
        if let Err(error) = watch(&address, start, &mut state).await {
            let error = error.to_string();
            if error != said {
                say(&format!("{:8.3}s  {address}: {error}; trying again", start.elapsed().as_secs_f64()));
                said = error;
            }
        }
        tokio::time::sleep(RECONNECT).await;
    }
}
