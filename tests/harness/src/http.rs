//! An HTTP client of one request a connection, for admin pages.

use std::{
    io::{self, Error, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::SOON;

/// A server's answer, without its headers.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    /// The body of a good answer.
    pub fn good(self) -> Option<String> {
        (200..300).contains(&self.status).then_some(self.body)
    }
}

/// The body of a page; nothing while there is none.
pub fn get(address: impl Into<SocketAddr>, path: &str) -> Option<String> {
    ask(address, SOON, "GET", path, &[], "").ok()?.good()
}

/// Sends a request with these headers, `name: value`; each wait for the server takes `within` at most.
pub fn ask(
    address: impl Into<SocketAddr>,
    within: Duration,
    method: &str,
    path: &str,
    headers: &[&str],
    body: &str,
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address.into(), within)?;
    stream.set_read_timeout(Some(within))?;
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let no_answer = || Error::new(ErrorKind::InvalidData, format!("no answer: {:?}", String::from_utf8_lossy(&answer)));
    parse(&answer).ok_or_else(no_answer)
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let (head, mut rest) = split(answer, b"\r\n\r\n")?;
    let head = std::str::from_utf8(head).ok()?.to_ascii_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut body = Vec::new();
    if head.contains("transfer-encoding: chunked") {
        loop {
            let (size, chunk) = split(rest, b"\r\n")?;
            let size = usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
            if size == 0 {
                break;
            }
            body.extend_from_slice(chunk.get(..size)?);
            rest = chunk.get(size + 2..)?;
        }
    } else {
        body.extend_from_slice(rest);
    }
    Some(Answer { status, body: String::from_utf8(body).ok()? })
}

/// The bytes before the first `mark`, and those behind it.
fn split<'a>(bytes: &'a [u8], mark: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(mark.len()).position(|window| window == mark)?;
    Some((&bytes[..at], &bytes[at + mark.len()..]))
}
