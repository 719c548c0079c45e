//! Chromium without a window, driven by WebDriver.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use harness::{
    SOON,
    process::{Process, START, each_line, free_port, mortal, root},
};
use serde_json::{Value, json};
use thirtyfour::{By, ChromiumLikeCapabilities, DesiredCapabilities, Key, LoggingPrefsLogLevel, WebDriver};
use tokio::runtime::Runtime;

const ARGUMENTS: [&str; 5] =
    ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"];

/// A browser with one window. It ends with this value, or else with the process: the driver is killed by the kernel then, and
/// Chromium ends where the pipe to its driver does.
pub struct Chromium {
    runtime: Runtime,
    driver: Option<WebDriver>,
    /// What comes before the path of a page.
    origin: String,
    process: Process,
    /// The files of the driver and of the browser.
    files: PathBuf,
}

impl Chromium {
    pub fn start() -> Self {
        let port = free_port();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let mut program = mortal("chromedriver");
        // A short path: a socket of the browser's lies in there, whose path has 107 characters at most.
        let files = std::env::temp_dir().join(format!("mox-browser-{port}"));
        fs::create_dir_all(&files).unwrap();
        program.arg(format!("--port={port}")).env("TMPDIR", &files);
        let process = each_line(&mut program, move |line| {
            if line.contains("started successfully") {
                let _ = ready.send(()); // who gave up waiting has panicked
            }
        });
        is_ready.recv_timeout(START).expect("chromedriver starts; tests/setup installs it");
        let runtime = Runtime::new().unwrap();
        let mut wanted = DesiredCapabilities::chrome();
        for argument in ARGUMENTS {
            wanted.add_arg(argument).unwrap();
        }
        wanted.set_browser_log_level(LoggingPrefsLogLevel::All).unwrap();
        let driver = runtime.block_on(WebDriver::new(format!("http://127.0.0.1:{port}"), wanted)).unwrap();
        Self { runtime, driver: Some(driver), origin: String::new(), process, files }
    }

    fn driver(&self) -> &WebDriver {
        self.driver.as_ref().expect("it runs until it is dropped")
    }

    /// The pages from now on are those of this address.
    pub fn look_at(&mut self, address: &str) {
        self.origin = format!("http://{address}");
    }

    /// Opens a page, and waits until it is loaded.
    pub fn open(&self, path: &str) {
        self.open_address(&format!("{}{path}", self.origin));
    }

    pub fn open_address(&self, address: &str) {
        self.runtime.block_on(self.driver().goto(address)).unwrap_or_else(|error| panic!("{address}: {error}"));
    }

    /// What a script returns, whose `arguments[0]` is the value.
    pub fn run(&self, script: &str, argument: &Value) -> Value {
        let done = self.runtime.block_on(self.driver().execute(script, vec![argument.clone()]));
        done.unwrap_or_else(|error| panic!("{script:.200}: {error}")).json().clone()
    }

    /// What a script hands to the function that is its `arguments[1]`.
    pub fn wait_for(&self, script: &str, argument: &Value) -> Value {
        let done = self.runtime.block_on(self.driver().execute_async(script, vec![argument.clone()]));
        done.unwrap_or_else(|error| panic!("{script:.200}: {error}")).json().clone()
    }

    /// What an expression is.
    pub fn is(&self, expression: &str) -> Value {
        self.run(&format!("return {expression}"), &Value::Null)
    }

    /// Waits until an expression is true.
    pub fn until(&self, expression: &str) {
        let deadline = Instant::now() + SOON;
        while self.is(expression) != true {
            let body = || self.is("document.body.innerText");
            assert!(Instant::now() < deadline, "not within {SOON:?}: {expression}\n{}", body());
            std::thread::sleep(Duration::from_millis(20)); // the polling interval
        }
    }

    /// A command of the DevTools protocol.
    pub fn tell(&self, method: &str, parameters: Value) -> Value {
        let done = self.runtime.block_on(self.driver().cdp().send_raw(method, parameters));
        done.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// What media queries see of the window, which itself does not become as narrow as a phone.
    pub fn size(&self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.tell("Emulation.setDeviceMetricsOverride", size);
    }

    /// `light` or `dark`.
    pub fn scheme(&self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.tell("Emulation.setEmulatedMedia", features);
    }

    /// Whether pages may run scripts, from the next one on.
    pub fn scripts(&self, on: bool) {
        self.tell("Emulation.setScriptExecutionDisabled", json!({ "value": !on }));
    }

    pub fn press(&self, key: Key) {
        let keys = self.driver().action_chain().send_keys(key);
        self.runtime.block_on(keys.perform()).unwrap();
    }

    pub fn click(&self, selector: &str) {
        let done = self.runtime.block_on(async { self.driver().find(By::Css(selector)).await?.click().await });
        done.unwrap_or_else(|error| panic!("{selector}: {error}"));
    }

    /// Types a text in place of what stands in a field.
    pub fn fill(&self, selector: &str, text: &str) {
        let done = self.runtime.block_on(async {
            let field = self.driver().find(By::Css(selector)).await?;
            field.clear().await?;
            field.send_keys(text).await
        });
        done.unwrap_or_else(|error| panic!("{selector}: {error}"));
    }

    /// What the console and the network have complained of since it was last asked.
    pub fn complaints(&self) -> Vec<String> {
        let all = self.runtime.block_on(self.driver().browser_log()).unwrap();
        let bad = all.into_iter().filter(|entry| ["SEVERE", "WARNING"].contains(&&*entry.level));
        bad.map(|entry| entry.message).collect()
    }

    /// What axe finds on the page, a line each.
    pub fn axe(&self) -> Vec<String> {
        static AXE: OnceLock<String> = OnceLock::new();
        let axe = AXE.get_or_init(|| {
            let file = root().join("target/real/axe.js");
            fs::read_to_string(&file).unwrap_or_else(|_| panic!("{}: tests/real/install.sh browser", file.display()))
        });
        self.run(axe, &Value::Null);
        let script = "const done = arguments[1];
            axe.run().then(found => done(found.violations.flatMap(rule => rule.nodes.map(node =>
                `${rule.id} (${rule.impact}): ${node.html.slice(0, 160)}: ${node.failureSummary}`))),
              error => done([`axe: ${error}`]));";
        serde_json::from_value(self.wait_for(script, &Value::Null)).unwrap()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        let Some(driver) = self.driver.take() else { return };
        let browser = driver.capabilities().get("goog:processID").and_then(Value::as_u64);
        if let Err(error) = self.runtime.block_on(driver.quit()) {
            eprintln!("the browser is killed, since it does not end: {error}");
            if let Some(pid) = browser {
                let _ = Command::new("kill").args(["-s", "KILL", &pid.to_string()]).status(); // it may be gone by now
            }
        }
        self.process.kill();
        let _ = fs::remove_dir_all(&self.files); // a browser that was killed may still write
    }
}
