//! The engine without Java: events as JSON lines on standard input, answers on standard output.
//!
//! `cargo run --release --example serve -- [--config FILE.json]`. The program differs from the embedded engine
//! in defaults only: it listens on `127.0.0.1:0` for MoX and for the admin pages, and waits for `loaded`.
//!
//! The first line of output says where it listens: `{"mox":"127.0.0.1:41873","admin":"127.0.0.1:41874","slices":{}}`,
//! where `slices` has the addresses of each partition by the number of partitions: `{"64":["127.0.0.1:…", …]}`.
//! Then every line of input that carries an `id` is answered, `{"id":7,"ok":true}` or `{"id":7,"ok":false,"error":"…"}`;
//! what is wrong with others goes to standard error. A bad line never ends the program. At the end of input it goes on
//! serving; SIGTERM drains and ends it with 0.
//!
//! | op | fields |
//! | --- | --- |
//! | `publish` | `dataInfoId`, `registerId`, `version`, `registerTimestamp` (ms), `data`: texts, or `dataBase64`: bytes of boxes; optional `source`, `cell`, `appName`, `sourceAddress` (of the client), `attributes` |
//! | `unpublish` | `dataInfoId`, `registerId`, `version`, `registerTimestamp`; optional `source` |
//! | `replace` | `dataInfoId`, `version`, `publishers`: bodies of publishes; optional `readStarted` (ms, now), `source` |
//! | `unknown` | `dataInfoIds`: services that could not be read; before `loaded` |
//! | `baseline` | `services`, `endpoints`: how much another session server serves; before `loaded` |
//! | `loaded` | the first complete view is in: serving starts |
//! | `policy` | `policy`: the new policy document, whole; answers its `hash`, and in `unmatched` its globs that match nothing; with `dryRun: true` nothing is changed, and the answer is that of `POST /mox/policy?dryRun` |
//! | `freeze`, `thaw` | the operator's latch |
//! | `release` | lets a held mass deletion or addition through, once; an error while none is held |
//! | `flush` | answers when the snapshot has every earlier line: `services`, `endpoints`, `version`, and `held` if something holds it back |

use std::{
    borrow::Cow,
    io::{BufRead, IsTerminal, Write},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use registry_mox::testing::{
    config::{self, Config},
    error::{Error, Result},
    host::{engine::Engine, log::Log},
    model::{self, RegisterVersion},
    registry::frame,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};

const USAGE: &str = "usage: serve [--config FILE.json]";

/// A line of input, by its `op`.
#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
enum Line {
    Publish {
        #[serde(default = "registry")]
        source: String,
        data_info_id: String,
        #[serde(flatten)]
        publisher: Publisher,
    },
    Unpublish {
        #[serde(default = "registry")]
        source: String,
        data_info_id: String,
        register_id: String,
        version: i64,
        register_timestamp: i64,
    },
    Replace {
        #[serde(default = "registry")]
        source: String,
        data_info_id: String,
        version: i64,
        #[serde(default = "model::date")]
        read_started: i64,
        publishers: Vec<Publisher>,
    },
    Unknown {
        data_info_ids: Vec<Arc<str>>,
    },
    Loaded {},
    Baseline {
        services: usize,
        endpoints: usize,
    },
    Policy {
        policy: Value,
        #[serde(default)]
        dry_run: bool,
    },
    Freeze {},
    Thaw {},
    Release {},
    Flush {},
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Publisher {
    register_id: String,
    version: i64,
    register_timestamp: i64,
    #[serde(default)]
    data: Vec<String>,
    #[serde(default)]
    data_base64: Vec<String>,
    #[serde(default)]
    cell: String,
    #[serde(default)]
    app_name: String,
    #[serde(default)]
    source_address: String,
    #[serde(default)]
    attributes: Map<String, Value>,
}

fn registry() -> String {
    "registry".to_owned()
}

impl Publisher {
    fn packed(&self) -> Result<frame::Publisher<'_>> {
        if !self.data.is_empty() && !self.data_base64.is_empty() {
            return Err(Error::InvalidArgument("give data or dataBase64, not both".to_owned()));
        }
        let serialized = !self.data_base64.is_empty();
        let payloads = if serialized {
            self.data_base64.iter().map(|text| base64(text).map(Cow::Owned)).collect::<Result<_>>()?
        } else {
            self.data.iter().map(|text| Cow::Borrowed(text.as_bytes())).collect()
        };
        let attribute = |(key, value): (&String, &Value)| -> Result<(Cow<'_, str>, Cow<'_, str>)> {
            let text = value.as_str().map(str::to_owned).unwrap_or_else(|| value.to_string());
            Ok((key.clone().into(), text.into()))
        };
        Ok(frame::Publisher {
            register_id: self.register_id.as_str().into(),
            version: RegisterVersion { version: self.version, timestamp: self.register_timestamp },
            cell: self.cell.as_str().into(),
            app_name: self.app_name.as_str().into(),
            source_address: self.source_address.as_str().into(),
            attributes: self.attributes.iter().map(attribute).collect::<Result<_>>()?,
            serialized,
            payloads,
        })
    }
}

fn base64(text: &str) -> Result<Vec<u8>> {
    use base64::Engine;
    let decoded = base64::engine::general_purpose::STANDARD.decode(text);
    decoded.map_err(|error| Error::InvalidArgument(format!("dataBase64: {error}")))
}

/// Executes one line and answers its fields.
async fn execute(engine: &Engine, line: Line) -> Result<Value> {
    let done = json!({});
    match line {
        Line::Publish { source, data_info_id, publisher } => {
            engine.apply(&frame::encode_publish(&source, &data_info_id, &publisher.packed()?)?)?;
        }
        Line::Unpublish { source, data_info_id, register_id, version, register_timestamp } => {
            let version = RegisterVersion { version, timestamp: register_timestamp };
            engine.apply(&frame::encode_unpublish(&source, &data_info_id, &register_id, version)?)?;
        }
        Line::Replace { source, data_info_id, version, read_started, publishers } => {
            let packed = publishers.iter().map(Publisher::packed).collect::<Result<Vec<_>>>()?;
            let age = model::date().saturating_sub(read_started);
            engine.apply(&frame::encode_replace(&source, &data_info_id, version, age, &packed)?)?;
        }
        Line::Unknown { data_info_ids } => engine.unknown(&data_info_ids),
        Line::Loaded {} => engine.loaded(),
        Line::Baseline { services, endpoints } => engine.baseline(services, endpoints),
        Line::Policy { policy, dry_run } => {
            let policy = config::policy_from_json(policy, &engine.config().namespace)?;
            if dry_run {
                // The lines after it wait, as for every other; the engine has threads of its own.
                let told = engine.dry_run(policy)?.told()?;
                return serde_json::to_value(told).map_err(|error| Error::Internal(error.to_string()));
            }
            let hash = engine.set_policy(policy)?;
            return Ok(json!({ "hash": hash, "unmatched": engine.unmatched() }));
        }
        Line::Freeze {} => engine.freeze(),
        Line::Thaw {} => engine.thaw(),
        Line::Release {} => engine.release()?,
        Line::Flush {} => {
            let flushed = engine.flush().await;
            return serde_json::to_value(flushed).map_err(|error| Error::Internal(error.to_string()));
        }
    }
    Ok(done)
}

/// The answer to a line; `None` for one that carries no id.
async fn answer(engine: &Engine, text: &str) -> Option<Value> {
    let mut fields = match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(fields)) => fields,
        Ok(_) => {
            eprintln!("serve: a line is a JSON object");
            return None;
        }
        Err(error) => {
            eprintln!("serve: this is no JSON: {error}");
            return None;
        }
    };
    let id = fields.remove("id");
    let outcome = match serde_json::from_value::<Line>(Value::Object(fields)) {
        Ok(line) => execute(engine, line).await,
        Err(error) => Err(Error::InvalidArgument(error.to_string())),
    };
    if let (Err(error), None) = (&outcome, &id) {
        eprintln!("serve: {error}");
    }
    let id = id?;
    Some(match outcome {
        Ok(Value::Object(mut answer)) => {
            answer.insert("id".to_owned(), id);
            answer.insert("ok".to_owned(), true.into());
            answer.into()
        }
        Ok(_) => json!({ "id": id, "ok": true }),
        Err(error) => json!({ "id": id, "ok": false, "error": error.to_string() }),
    })
}

fn configuration() -> Result<Config, String> {
    let mut arguments = std::env::args().skip(1);
    let mut given = json!({});
    match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (None, ..) => {}
        (Some("--config"), Some(file), None) => {
            let text = std::fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
            given = serde_json::from_str(&text).map_err(|error| format!("{file}: {error}"))?;
        }
        _ => return Err(USAGE.to_owned()),
    }
    let mut defaults = Config {
        listen: ([127, 0, 0, 1], 0).into(),
        admin_listen: Some(([127, 0, 0, 1], 0).into()),
        ..Config::default()
    };
    defaults.protect.startup_hold = Duration::MAX;
    Config::from_json_over(&defaults, given.to_string().as_bytes()).map_err(|error| error.to_string())
}

fn print(value: &Value) {
    let mut out = std::io::stdout().lock();
    // Who does not read the answers does not end the program.
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}

/// Executes the lines of standard input until its end. On a thread of its own, as a session server's calls are.
async fn read(engine: &Engine) {
    for line in std::io::stdin().lock().split(b'\n') {
        let Ok(line) = line else { return };
        let line = String::from_utf8_lossy(&line);
        if !line.trim().is_empty()
            && let Some(answer) = answer(engine, &line).await
        {
            print(&answer);
        }
    }
}

/// SIGTERM and SIGINT, from now on.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    /// Needs a runtime around it.
    fn new() -> Self {
        let on = |kind| signal(kind).expect("signals are there on every unix");
        Self { terminate: on(SignalKind::terminate()), interrupt: on(SignalKind::interrupt()) }
    }

    async fn wait(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a small runtime starts")
}

fn main() -> ExitCode {
    let log = Arc::<Log>::default();
    // Nothing else in this program has set one.
    let _ = tracing::dispatcher::set_global_default(log.dispatch());
    std::thread::spawn(move || {
        loop {
            for line in log.take(Duration::from_secs(60)) {
                eprintln!("{} {}: {}", line.level, line.target, line.message);
            }
        }
    });
    let started = configuration().and_then(|config| {
        let engine = Arc::new(Engine::open(config).map_err(|error| error.to_string())?);
        let bound = engine.listen().map_err(|error| error.to_string())?;
        Ok((engine, bound))
    });
    let (engine, bound) = match started {
        Ok(started) => started,
        Err(error) => {
            eprintln!("serve: {error}");
            return ExitCode::FAILURE;
        }
    };
    let waits = runtime();
    // Before the first line: who reads it may end the program at once.
    let ends = {
        let _in_runtime = waits.enter();
        Ends::new()
    };
    print(&json!({ "mox": bound.mox, "admin": bound.admin, "slices": bound.partitions }));
    if std::io::stdin().is_terminal() {
        eprintln!("serve: type one JSON object a line, {{\"id\":1,\"op\":\"loaded\"}} first");
    }
    let reads = Arc::clone(&engine);
    // A read of standard input cannot be called off, and nobody waits for it.
    std::thread::spawn(move || runtime().block_on(read(&reads)));
    waits.block_on(ends.wait());
    engine.close();
    ExitCode::SUCCESS
}
