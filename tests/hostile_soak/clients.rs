//! Clients that do what no good client does.

use std::{net::SocketAddr, time::Duration};

use harness::{
    client::{Delta, Request, SERVICE_ENTRY, Sotw, Stream, node},
    random::Random,
};
use registry_mox::proto::envoy::service::discovery::v3::DiscoveryRequest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};

/// Longest that one misdeed takes.
const MOST: Duration = Duration::from_secs(3);

/// Does one misdeed after another to the server that is the target, the second its admin pages, while there is one.
pub(crate) async fn run(mut target: watch::Receiver<Option<(SocketAddr, SocketAddr)>>, seed: u64) {
    let mut random = Random::new(seed ^ 0xC11E);
    loop {
        sleep(Duration::from_millis(20 + random.below(200) as u64)).await;
        let now = *target.borrow_and_update();
        if let Some((mox, admin)) = now {
            tokio::select! {
                // The server may refuse any of it at any moment.
                _ = timeout(MOST, misdeed(mox, admin, &mut random)) => {}
                _ = target.changed() => {}
            }
        }
    }
}

async fn misdeed(mox: SocketAddr, admin: SocketAddr, random: &mut Random) -> Option<()> {
    match random.below(9) {
        0 => names(mox, random).await,
        1 => types(mox, random).await,
        2 => nacks(mox, random).await,
        3 => slow(mox, random).await,
        4 => junk(if random.percent(50) { mox } else { admin }, random).await,
        5 => frames(mox, random).await,
        6 => half(if random.percent(50) { mox } else { admin }).await,
        7 => page(admin, "/mox/dump", random).await,
        _ => page(admin, "/mox/dump?type=ServiceEntry&format=yaml", random).await,
    }
}

async fn open<Q: Request>(mox: SocketAddr) -> Option<Stream<Q>> {
    let channel = tonic::transport::Channel::from_shared(format!("http://{mox}")).ok()?.connect().await.ok()?;
    Stream::open(channel, None).await.ok()
}

/// Names by the ten thousand that nothing has.
async fn names(mox: SocketAddr, random: &mut Random) -> Option<()> {
    if random.percent(50) {
        let mut stream: Delta = open(mox).await?;
        for _ in 0..10 {
            let names: Vec<String> = (0..1_000).map(|_| format!("sofa-registry/{}", random.text(60))).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            stream.ask("", &names, &[]);
            sleep(Duration::from_millis(5)).await;
        }
        while stream.message().await.is_ok() {}
    } else {
        let mut stream: Sotw = open(mox).await?;
        for kind in 0..20 {
            let names: Vec<String> = (0..1_000).map(|_| random.text(60)).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            stream.ask(&format!("test/v{kind}/Kind"), &names);
        }
        while stream.message().await.is_ok() {}
    }
    None
}

async fn types(mox: SocketAddr, random: &mut Random) -> Option<()> {
    let mut stream: Sotw = open(mox).await?;
    for _ in 0..100 {
        stream.ask(&random.text(400), &[]);
    }
    while stream.message().await.is_ok() {}
    None
}

/// Refuses each response, in many words.
async fn nacks(mox: SocketAddr, random: &mut Random) -> Option<()> {
    let mut stream: Sotw = open(mox).await?;
    stream.ask(SERVICE_ENTRY, &[]);
    for _ in 0..100 {
        let response = stream.message().await.ok()?;
        let text = random.text(60_000);
        stream.request(&response.type_url, &response.nonce, &[], Some(&text));
    }
    None
}

/// Asks for everything and takes it by drops.
async fn slow(mox: SocketAddr, random: &mut Random) -> Option<()> {
    let connection = TcpStream::connect(mox).await.ok()?;
    let (mut client, connection) =
        h2::client::Builder::new().initial_window_size(65_535).handshake::<_, bytes::Bytes>(connection).await.ok()?;
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{mox}{}{}", harness::client::SERVICE, DiscoveryRequest::METHOD))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .ok()?;
    let (response, mut send) = client.send_request(request, false).ok()?;
    let message = DiscoveryRequest { node: Some(node("slow")), type_url: SERVICE_ENTRY.into(), ..Default::default() };
    let message = prost::Message::encode_to_vec(&message);
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    send.send_data(framed.into(), false).ok()?;
    let mut body = response.await.ok()?.into_body();
    loop {
        let data = body.data().await?.ok()?;
        sleep(Duration::from_millis(random.below(300) as u64)).await;
        body.flow_control().release_capacity(data.len()).ok()?;
    }
}

async fn junk(to: SocketAddr, random: &mut Random) -> Option<()> {
    let mut stream = TcpStream::connect(to).await.ok()?;
    let bytes: Vec<u8> = (0..random.below(4_000)).map(|_| random.below(256) as u8).collect();
    stream.write_all(&bytes).await.ok()?;
    stream.read_to_end(&mut Vec::new()).await.ok()?;
    None
}

/// A flood of small frames of one kind: PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION.
async fn frames(mox: SocketAddr, random: &mut Random) -> Option<()> {
    let mut stream = TcpStream::connect(mox).await.ok()?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.ok()?;
    let (kind, length, stream_id) = [(2, 5, 1), (3, 4, 1), (4, 0, 0), (6, 8, 0), (8, 4, 0), (9, 0, 1)][random.below(6)];
    let mut frame = vec![0, 0, length, kind, 0, 0, 0, 0, stream_id];
    frame.extend(std::iter::repeat_n(1, usize::from(length)));
    let many = frame.repeat(1_000);
    for _ in 0..20 {
        stream.write_all(&many).await.ok()?;
        sleep(Duration::from_millis(10)).await;
    }
    None
}

/// Half a request, and then nothing.
async fn half(to: SocketAddr) -> Option<()> {
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(to).await.ok()?;
        stream.write_all(b"GET /mox/status HTTP/1.1\r\nHost: x").await.ok()?;
        open.push(stream);
    }
    sleep(MOST).await;
    None
}

/// A large page, read at any pace or left in the middle.
async fn page(admin: SocketAddr, path: &str, random: &mut Random) -> Option<()> {
    let mut stream = TcpStream::connect(admin).await.ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.ok()?;
    let pause = Duration::from_millis(random.below(50) as u64);
    let mut piece = vec![0; 16 << 10];
    while stream.read(&mut piece).await.ok()? > 0 {
        sleep(pause).await;
    }
    None
}
