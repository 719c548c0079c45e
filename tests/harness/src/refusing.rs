//! A Kubernetes API server that has nothing and refuses each object in words of its own.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};

use crate::process::fresh_home;

/// Answers until the process ends; `words` are those to the object of a name. Returns a kubeconfig for it, in a home of its own.
pub fn start(name: &str, words: impl Fn(&str) -> String + Send + Sync + 'static) -> PathBuf {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let words = Arc::new(words);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let words = Arc::clone(&words);
            // A client that goes away is no fault of the test.
            std::thread::spawn(move || answer(&stream, &*words));
        }
    });
    let home = fresh_home(name);
    fs::create_dir_all(&home).unwrap();
    let file = home.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
         clusters: [{{name: x, cluster: {{server: 'http://{address}'}}}}]\n\
         users: [{{name: x, user: {{token: x}}}}]\n\
         contexts: [{{name: x, context: {{cluster: x, user: x}}}}]\n"
    );
    fs::write(&file, text).unwrap();
    file
}

fn answer(mut stream: &TcpStream, words: &dyn Fn(&str) -> String) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut lines = reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let first = lines.next()?;
    let length = lines.find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    // What `find_map` left of the head.
    if length.is_some() {
        lines.for_each(drop);
    }
    let mut body = vec![0; length.unwrap_or_default()];
    reader.read_exact(&mut body).ok()?;
    let (method, target) = first.split_once(' ')?;
    let (path, query) = target.split_once(' ')?.0.split_once('?').unwrap_or((target.split_once(' ')?.0, ""));
    let (status, body) = match method {
        "GET" if path == "/apis/networking.istio.io" => (200, json!({ "versions": [{ "version": "v1" }] })),
        "GET" if path.contains("/leases/") => (404, refusal(404, "no such lease")),
        "GET" if query.contains("watch=true") => {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n").ok()?;
            std::thread::sleep(Duration::from_secs(600)); // longer than the suite looks
            return None;
        }
        "GET" => (200, json!({ "metadata": { "resourceVersion": "1" }, "items": [] })),
        "POST" | "PUT" if path.contains("/leases") => {
            let mut lease: Value = serde_json::from_slice(&body).ok()?;
            lease["metadata"]["resourceVersion"] = "1".into();
            (200, lease)
        }
        _ => (422, refusal(422, &words(path.rsplit('/').next()?))),
    };
    let body = body.to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .ok()
}

fn refusal(code: u16, words: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": code, "message": words })
}
