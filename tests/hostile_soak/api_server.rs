//! A Kubernetes API server that answers anything.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use harness::random::Random;

/// Answers each connection in a way of its own, until the process ends.
pub(crate) fn start(seed: u64) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().flatten().enumerate() {
            std::thread::spawn(move || answer(&stream, &mut Random::new(seed ^ n as u64)));
        }
    });
    address
}

/// A kubeconfig for it, which knows no secret.
pub(crate) fn kubeconfig(dir: &Path, server: SocketAddr) -> PathBuf {
    let file = dir.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
         clusters: [{{name: x, cluster: {{server: 'http://{server}'}}}}]\n\
         users: [{{name: x, user: {{token: x}}}}]\n\
         contexts: [{{name: x, context: {{cluster: x, user: x}}}}]\n"
    );
    fs::write(&file, text).unwrap();
    file
}

fn answer(stream: &TcpStream, random: &mut Random) -> Option<()> {
    let head = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).count();
    let status = [
        "200 OK",
        "201 Created",
        "403 Forbidden",
        "409 Conflict",
        "410 Gone",
        "429 Too Many Requests",
        "500 X",
        "504 X",
    ][random.below(8)];
    let body = match random.below(5) {
        0 => String::new(),
        1 => random.text(2_000),
        2 => format!(
            r#"{{"kind":"Status","status":"Failure","reason":"Forbidden","code":403,"message":"{head} cannot"}}"#
        ),
        3 => r#"{"kind":"List","metadata":{"resourceVersion":"1"},"items":[{},{"metadata":{"name":"x"}}]}"#.to_owned(),
        _ => "x".repeat(random.below(4 << 20)),
    };
    let length = if random.percent(80) { body.len() } else { random.below(1 << 24) };
    std::thread::sleep(Duration::from_millis(random.below(500) as u64));
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}").ok()
}
