//! A TCP connection that puts together what is written to it at one time.
//!
//! h2 writes and flushes each frame of 16 KiB by itself. As a segment of its own each costs the kernel more than the copy of
//! its bytes, on both sides. So large writes are sent with `MSG_MORE`: the kernel keeps the last segment open for what comes,
//! and a flush only asks for another turn of the connection's task, in which the segment is closed if nothing has come.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

/// Writes of at least so many bytes are likely to be followed by others.
const LARGE: usize = 1 << 10;

/// A connection without Nagle's delays, and without segments that are smaller than they have to be.
#[derive(Debug)]
pub struct Tcp {
    stream: TcpStream,
    /// The kernel waits for more.
    open: bool,
    /// The task was asked to come again.
    asked: bool,
}

impl Tcp {
    /// Takes a connection over.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, open: false, asked: false })
    }

    /// Sends what the kernel keeps back.
    fn push(&mut self) -> io::Result<()> {
        self.asked = false;
        // To set it anew is what pushes (Linux: `__tcp_sock_set_nodelay`).
        if std::mem::take(&mut self.open) { self.stream.set_nodelay(true) } else { Ok(()) }
    }
}

impl AsyncRead for Tcp {
    /// The first thing that a turn of h2's connection does, and also the last before it writes.
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.push()?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let open = slices.iter().map(|slice| slice.len()).sum::<usize>() >= LARGE;
        let flags = SendFlags::NOSIGNAL | if open { SendFlags::MORE } else { SendFlags::empty() };
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            let send = || Ok(sendmsg(&self.stream, slices, &mut SendAncillaryBuffer::default(), flags)?);
            match self.stream.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => {
                    self.open = open && sent.is_ok();
                    return Poll::Ready(sent);
                }
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.open && !std::mem::replace(&mut self.asked, true) {
            context.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Wake, Waker},
        time::Duration,
    };

    use tokio::{io::AsyncReadExt, net::TcpListener};

    use super::*;

    #[derive(Default)]
    struct Turns(AtomicUsize);

    impl Wake for Turns {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn pair() -> (Tcp, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Tcp::new(listener.accept().await.unwrap().0).unwrap(), client)
    }

    /// What has come within a time in which it would have come.
    async fn received(client: &mut TcpStream, most: usize) -> usize {
        let mut bytes = vec![0; most];
        let read = client.read_exact(&mut bytes[..]);
        match tokio::time::timeout(Duration::from_millis(100), read).await {
            Ok(read) => read.unwrap(),
            Err(_) => 0,
        }
    }

    #[tokio::test]
    async fn what_is_written_in_one_turn_is_sent_together_and_the_next_turn_ends_it() {
        let (mut tcp, mut client) = pair().await;
        let turns = Arc::<Turns>::default();
        let waker = Waker::from(Arc::clone(&turns));
        let mut context = Context::from_waker(&waker);
        for _ in 0..3 {
            poll_fn(|own| Pin::new(&mut tcp.stream).poll_write_ready(own)).await.unwrap();
            let slices = [IoSlice::new(&[1; 9]), IoSlice::new(&[2; LARGE])];
            let Poll::Ready(Ok(written)) = Pin::new(&mut tcp).poll_write_vectored(&mut context, &slices) else {
                panic!()
            };
            assert_eq!(written, LARGE + 9);
            assert!(matches!(Pin::new(&mut tcp).poll_flush(&mut context), Poll::Ready(Ok(()))));
        }
        assert_eq!(turns.0.load(Ordering::Relaxed), 1, "one turn is asked for, however many frames there are");
        let mut nothing = [0; 1];
        let read = Pin::new(&mut tcp).poll_read(&mut context, &mut ReadBuf::new(&mut nothing));
        assert!(read.is_pending() && !tcp.open && !tcp.asked);
        assert_eq!(received(&mut client, 3 * (LARGE + 9)).await, 3 * (LARGE + 9));
    }

    #[tokio::test]
    async fn a_small_write_takes_along_what_was_kept_back() {
        let (mut tcp, mut client) = pair().await;
        let large = [1; LARGE];
        poll_fn(|context| Pin::new(&mut tcp).poll_write(context, &large)).await.unwrap();
        assert!(tcp.open);
        poll_fn(|context| Pin::new(&mut tcp).poll_write(context, b"end")).await.unwrap();
        assert!(!tcp.open);
        poll_fn(|context| Pin::new(&mut tcp).poll_flush(context)).await.unwrap();
        assert!(!tcp.asked);
        assert_eq!(received(&mut client, LARGE + 3).await, LARGE + 3);
    }
}
