//! A client that speaks HTTP/2 by hand.

use bytes::Bytes;
use harness::{SOON, client::SERVICE};
use tonic::Code;

/// A stream whose frames are made by hand.
pub(crate) struct Raw {
    pub(crate) out: h2::SendStream<Bytes>,
    pub(crate) answer: h2::client::ResponseFuture,
    pub(crate) pings: h2::PingPong,
    /// The connection; aborting it is what a client that dies does.
    pub(crate) connection: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

impl Raw {
    pub(crate) async fn open(address: &str, method: &str) -> Self {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (client, mut connection) = h2::client::handshake(stream).await.unwrap();
        let pings = connection.ping_pong().unwrap();
        let connection = tokio::spawn(connection);
        let mut client = client.ready().await.unwrap();
        let request = http::Request::post(format!("http://{address}{SERVICE}{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let (answer, out) = client.send_request(request.body(()).unwrap(), false).unwrap();
        Self { out, answer, pings, connection }
    }

    /// Status of the answer, from its headers or its trailers.
    pub(crate) async fn status(self) -> Code {
        let answer = tokio::time::timeout(SOON, self.answer).await.expect("an answer in time").unwrap();
        let code = |headers: &http::HeaderMap| headers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes()));
        if let Some(code) = code(answer.headers()) {
            return code;
        }
        let mut body = answer.into_body();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            let _ = body.flow_control().release_capacity(data.len());
        }
        code(&body.trailers().await.unwrap().unwrap()).unwrap()
    }
}
