//! A real Kubernetes API server with etcd, which `install.sh kubernetes` builds.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use crate::process::{Process, START, eventually, free_port, log_path, root, script};

/// Runs while it lives.
pub struct ApiServer {
    dir: PathBuf,
    port: u16,
    etcd: Option<Process>,
    api: Option<Process>,
}

impl ApiServer {
    /// Starts an empty API server that knows Istio's kinds and keeps its data in a folder of this name.
    pub fn start(name: &str) -> Self {
        let dir = root().join("target/real/home").join(name);
        let _ = fs::remove_dir_all(&dir); // it may not be there
        let port = loop {
            // The two after it are etcd's.
            let port = free_port();
            let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
            if port < u16::MAX - 2 && free(port + 1) && free(port + 2) {
                break port;
            }
        };
        let mut server = Self { dir, port, etcd: None, api: None };
        assert!(server.command("prepare").status().unwrap().success());
        server.up();
        server.install();
        server
    }

    /// Starts what is down.
    pub fn up(&mut self) {
        for (name, slot) in [("etcd", &mut self.etcd), ("apiserver", &mut self.api)] {
            if slot.is_none() {
                let mut command = script("kubernetes.sh", &log_path(&format!("kubernetes-{name}")));
                *slot = Some(Process::start(command.args([name]).arg(&self.dir).arg(self.port.to_string())));
            }
        }
        eventually(START, "the API server is ready", || {
            let running = [&mut self.etcd, &mut self.api].into_iter().flatten().all(Process::alive);
            assert!(running, "it ended: see target/real/log/kubernetes-*.log");
            self.command("ready").status().unwrap().success().then_some(())
        });
    }

    /// Istio's kinds.
    pub fn install(&self) {
        let output = self.command("crds").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn down(&mut self) {
        self.api = None;
    }

    /// As when the disk of etcd is lost.
    pub fn lose_data(&mut self) {
        (self.api, self.etcd) = (None, None);
        fs::remove_dir_all(self.dir.join("etcd")).unwrap();
    }

    /// Credentials of `admin`, who may do everything, or `session`, who may do what RBAC says.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.dir.join(format!("{user}.kubeconfig"))
    }

    fn command(&self, name: &str) -> Command {
        command(name, &self.dir, self.port)
    }
}

fn command(name: &str, dir: &Path, port: u16) -> Command {
    let mut command = Command::new(root().join("tests/real/kubernetes.sh"));
    command.arg(name).arg(dir).arg(port.to_string());
    command
}
