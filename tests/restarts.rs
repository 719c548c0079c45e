//! `serve` killed at any moment and started again, while what it serves changes: its client never loses anything by it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use harness::{
    SOON,
    client::{self, MoxClient, SERVICE_ENTRY, istiod_node},
    nth as id, nth_name as name,
    process::eventually,
    random::Random,
    serve::{Serve, program},
};
use serde_json::{Value, json};

const SERVICES: usize = 40;
/// Of each service; the last one comes and goes.
const ENDPOINTS: usize = 5;

type State = BTreeMap<String, BTreeSet<String>>;

fn endpoint(service: usize, endpoint: usize) -> String {
    format!("10.0.{service}.{endpoint}:12200")
}

/// The registry's state: for each service whether its last endpoint is there, and how often that changed.
#[derive(Clone)]
struct Model {
    last: [(bool, i64); SERVICES],
}

impl Model {
    fn state(&self) -> State {
        let endpoints = |service: usize| {
            let count = ENDPOINTS - usize::from(!self.last[service].0);
            (0..count).map(|n| endpoint(service, n)).collect()
        };
        (0..SERVICES).map(|service| (name(service), endpoints(service))).collect()
    }

    fn line(&self, service: usize, n: usize) -> Value {
        let version = if n == ENDPOINTS - 1 { self.last[service].1 } else { 1 };
        let op = if n == ENDPOINTS - 1 && !self.last[service].0 { "unpublish" } else { "publish" };
        let mut line = json!({ "op": op, "dataInfoId": id(service), "registerId": format!("r{n}"), "version": version,
                               "registerTimestamp": 1 });
        if op == "publish" {
            line["data"] = json!([endpoint(service, n)]);
        }
        line
    }
}

fn start(config: &Path) -> Serve {
    Serve::start(Command::new(program()).arg("--config").arg(config).stderr(Stdio::null()))
}

/// The client's state, and the faults that it has found.
#[derive(Default)]
struct Told {
    state: State,
    version: String,
    responses: usize,
    wrong: Vec<String>,
    duplicates: usize,
}

/// Connects to whatever address is the present one, and keeps what it has in between, as istiod does.
async fn follow(address: Arc<Mutex<String>>, told: Arc<Mutex<Told>>) {
    loop {
        let to = address.lock().unwrap().clone();
        if let Ok(mut client) = MoxClient::asking(&to, istiod_node(), SERVICE_ENTRY).await {
            while let Ok(response) = client.next().await {
                if response.type_url == SERVICE_ENTRY {
                    take(&mut told.lock().unwrap(), client.state(), response.version_info);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn take(told: &mut Told, now: &client::State, version: String) {
    told.state =
        now.iter().map(|(name, resource)| (name.clone(), resource.endpoints().into_iter().collect())).collect();
    told.duplicates += now.values().map(|r| r.endpoints().len()).sum::<usize>()
        - told.state.values().map(BTreeSet::len).sum::<usize>();
    told.version = version;
    told.responses += 1;
    // All but the last of a service are never taken back by the registry.
    for service in 0..SERVICES {
        for n in 0..ENDPOINTS - 1 {
            if !told.state.get(&name(service)).is_some_and(|all| all.contains(&endpoint(service, n))) {
                told.wrong.push(format!("{} in response {}", endpoint(service, n), told.responses));
            }
        }
    }
}

/// `MOX_RESTART_ROUNDS` kills (20).
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn kills_under_load_take_nothing_from_a_client() {
    let rounds: usize = std::env::var("MOX_RESTART_ROUNDS").map_or(20, |rounds| rounds.parse().unwrap());
    let seed = std::env::var("MOX_SEED").map_or(u64::from(std::process::id()), |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let dir = std::env::temp_dir().join(format!("mox-restarts-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let config = dir.join("config.json");
    fs::write(&config, json!({ "stateDir": dir.join("state") }).to_string()).unwrap();

    let (address, told) = (Arc::new(Mutex::new("127.0.0.1:1".to_owned())), Arc::<Mutex<Told>>::default());
    let follows = tokio::spawn(follow(Arc::clone(&address), Arc::clone(&told)));
    let mut model = Model { last: [(true, 1); SERVICES] };
    let (mut early, mut changes, mut version) = (0, 0, String::new());
    tokio::task::block_in_place(|| {
        for round in 0..rounds {
            if round % 100 == 99 {
                println!("{} of {rounds} kills", round + 1);
            }
            let mut serve = start(&config);
            *address.lock().unwrap() = serve.address();
            // A quarter of the servers is killed while gathering, before they may serve.
            let feed = SERVICES * ENDPOINTS;
            let cut = if random.below(4) == 0 { random.below(feed) } else { feed };
            for n in 0..cut {
                serve.say(&model.line(n / ENDPOINTS, n % ENDPOINTS));
            }
            if cut < feed {
                early += 1;
                drop(serve);
                continue;
            }
            serve.say(&json!({ "op": "loaded" }));
            let flushed = serve.flush();
            assert!(
                version.is_empty() || flushed["version"] == *version,
                "round {round}: other bytes for the same data"
            );
            eventually(SOON, "the client has it all", || {
                (told.lock().unwrap().version == flushed["version"]).then_some(())
            });
            assert_eq!(told.lock().unwrap().state, model.state(), "round {round}");
            for _ in 0..random.below(200) {
                let service = random.below(SERVICES);
                let (there, changed) = model.last[service];
                model.last[service] = (!there, changed + 1);
                serve.say(&model.line(service, ENDPOINTS - 1));
                changes += 1;
            }
            // Half of them are killed in the middle of that, and what comes of it is not known.
            version = match random.below(2) {
                0 => String::new(),
                _ => serve.flush()["version"].as_str().unwrap().to_owned(),
            };
            drop(serve);
            let told = told.lock().unwrap();
            assert_eq!((&told.wrong[..], told.duplicates), (&[] as &[String], 0), "round {round}, seed {seed}");
        }
    });
    follows.abort();
    let told = told.lock().unwrap();
    println!(
        "{rounds} kills, {early} of them before the view was complete; {changes} changes, {} responses, {} wrong deletions",
        told.responses,
        told.wrong.len()
    );
    assert!(told.responses >= rounds - early);
    fs::remove_dir_all(dir).unwrap();
}
