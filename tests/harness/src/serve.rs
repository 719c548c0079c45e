//! `examples/serve.rs` as a process that is told what a registry holds.

use std::{net::SocketAddr, path::PathBuf, process::Command};

use serde_json::{Value, json};

use crate::{
    SOON, http,
    process::{Driven, START},
};

/// What `MOX_SERVE` names, or the example of the profile that the tests are built with.
pub fn program() -> PathBuf {
    if let Some(program) = std::env::var_os("MOX_SERVE") {
        return program.into();
    }
    let tests = std::env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("examples/serve");
    assert!(program.is_file(), "{} is missing: cargo build --examples", program.display());
    program
}

/// The running program; killed without a goodbye when dropped.
pub struct Serve {
    pub driven: Driven,
    /// The program's first line: where it listens.
    pub first: Value,
    asked: u64,
}

impl Serve {
    /// Starts [`program`], to which the command adds arguments and where its standard error goes.
    pub fn start(command: &mut Command) -> Self {
        let mut driven = Driven::start(command);
        let first = driven.line(START);
        let first = serde_json::from_str(&first).unwrap_or_else(|error| panic!("{first:?}: {error}"));
        Self { driven, first, asked: 0 }
    }

    /// `host:port` of its MoX listener.
    pub fn address(&self) -> String {
        self.first["mox"].as_str().expect("an address").to_owned()
    }

    /// Says a line, and waits for nothing.
    pub fn say(&mut self, line: &Value) {
        self.driven.tell(&line.to_string());
    }

    /// The answer to a line with an `id`.
    pub fn ask(&mut self, line: &Value) -> Value {
        self.say(line);
        let answer = self.driven.line(START);
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{answer:?}: {error}"))
    }

    /// The answer to a line that must be a good one.
    pub fn order(&mut self, mut line: Value) -> Value {
        self.asked += 1;
        line["id"] = self.asked.into();
        let answer = self.ask(&line);
        assert!(answer["ok"] == true && answer["id"] == self.asked, "{line}: {answer}");
        answer
    }

    /// Waits until what it serves has every line before; what that is.
    pub fn flush(&mut self) -> Value {
        self.order(json!({ "op": "flush" }))
    }

    /// A page of its admin listener.
    pub fn page(&self, path: &str) -> http::Answer {
        let admin: SocketAddr = self.first["admin"].as_str().expect("an address").parse().unwrap();
        http::ask(admin, SOON, "GET", path, &[], "").unwrap()
    }
}
