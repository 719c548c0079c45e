//! Processes that a test starts, and what waits for them. Each is killed by its pid when dropped. Every wait is for a condition
//! and has a deadline.

use std::{
    fmt::Debug,
    fs::{self, File},
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicU16, Ordering},
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{SOON, http};

/// Enough for any part to start on a busy machine.
pub const START: Duration = Duration::from_secs(180);

/// Polls until there is a value.
pub fn eventually<T>(within: Duration, what: &str, mut value: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = value() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        thread::sleep(Duration::from_millis(1)); // the polling interval
    }
}

/// Polls until a value is the wanted one; where it never is, the last one seen is shown.
pub fn eventually_is<T: PartialEq + Debug>(wanted: &T, what: &str, mut value: impl FnMut() -> T) {
    let deadline = Instant::now() + SOON;
    let mut seen = value();
    while seen != *wanted && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1)); // the polling interval
        seen = value();
    }
    assert!(seen == *wanted, "not within {SOON:?}: {what}\n  wanted: {wanted:#?}\n    seen: {seen:#?}");
}

/// Ports below those that the system gives to connections, one of which might take a port before its server does.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A port that is free now, which nobody else is given in this process.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() as u16;
    loop {
        let nth = first.wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + nth % (PORTS.end - PORTS.start);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

pub fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

pub fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&local(port), SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

/// The body of a page on 127.0.0.1; nothing while there is none.
pub fn get(port: u16, path: &str) -> Option<String> {
    http::get(local(port), path)
}

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

/// A program that the kernel kills when the thread that starts it ends, however that happens; in a process group of its
/// own.
pub fn mortal(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program).stdin(Stdio::null()).process_group(0);
    command
}

/// A script of `tests/real`, which becomes its part by `exec`.
pub fn script(script: &str, log: &Path) -> Command {
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    let log = File::create(log).unwrap();
    let mut command = mortal(root().join("tests/real").join(script));
    command.stdout(log.try_clone().unwrap()).stderr(log);
    command
}

pub fn log_path(name: &str) -> PathBuf {
    root().join(format!("target/real/log/{name}.log"))
}

/// A home folder for a part, without what an earlier run left there.
pub fn fresh_home(name: &str) -> PathBuf {
    let home = root().join("target/real/home").join(name);
    match fs::remove_dir_all(&home) {
        Err(error) if error.kind() != ErrorKind::NotFound => panic!("{}: {error}", home.display()),
        _ => home,
    }
}

/// Whether this process may make networks of its own.
pub fn is_root() -> bool {
    let output = Command::new("id").arg("-u").stdin(Stdio::null()).output().unwrap();
    output.stdout == b"0\n"
}

pub struct Process(Child);

impl Process {
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    pub fn alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    pub fn ask_to_end(&self) {
        self.signal("TERM");
    }

    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        eventually(within, "the process ends", || self.0.try_wait().unwrap())
    }

    pub fn terminate(&mut self, within: Duration) -> ExitStatus {
        self.ask_to_end();
        self.wait(within)
    }

    /// As when its machine is lost: no goodbye.
    pub fn kill(&mut self) {
        // Either fails only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// The text that the process writes to its piped standard error, up to the end of that.
    pub fn errors(&mut self) -> String {
        let mut text = String::new();
        self.0.stderr.take().expect("a piped standard error").read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Has a thread take the lines of a process as they come, until it ends.
pub fn each_line(command: &mut Command, mut take: impl FnMut(String) + Send + 'static) -> Process {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    thread::spawn(move || stdout.lines().map_while(Result::ok).for_each(&mut take));
    Process(child)
}

/// A process that is driven by lines on its standard input, and answers with lines.
pub struct Driven {
    pub process: Process,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Driven {
    pub fn start(command: &mut Command) -> Self {
        let (sender, lines) = channel();
        let mut process = each_line(command.stdin(Stdio::piped()), move |line| {
            let _ = sender.send(line); // who does not read on has heard enough
        });
        let input = process.0.stdin.take();
        Self { process, input, lines }
    }

    pub fn tell(&mut self, line: &str) {
        writeln!(self.input.as_mut().expect("an open input"), "{line}").unwrap();
    }

    /// Its input, which ends when that is dropped.
    pub fn take_input(&mut self) -> Option<ChildStdin> {
        self.input.take()
    }

    pub fn line(&mut self, within: Duration) -> String {
        self.lines.recv_timeout(within).expect("a line of its output")
    }

    /// The next line, however long it takes; nothing once it has ended.
    pub fn next_line(&mut self) -> Option<String> {
        self.lines.recv().ok()
    }
}
