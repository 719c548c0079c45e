//! The end of a server's streams, all at once and without a last state: a client that reconnects elsewhere keeps what it has.

use tokio::sync::watch;

/// Tells a stream when it is to end.
#[derive(Debug, Clone)]
pub struct Drain {
    stopping: watch::Receiver<bool>,
    fenced: watch::Receiver<bool>,
}

/// Why a server ends its streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainReason {
    /// The server stops.
    Stopping,
    /// This session server is cut off from its data; clients are to go to another.
    Fenced,
}

impl Drain {
    /// Streams end as soon as either channel says `true`, or its sender is gone.
    pub fn new(stopping: watch::Receiver<bool>, fenced: watch::Receiver<bool>) -> Self {
        Self { stopping, fenced }
    }

    /// Waits until the server stops.
    pub async fn stopping(&mut self) {
        // A sender that is gone has stopped, too.
        let _ = self.stopping.wait_for(|stopping| *stopping).await;
    }

    /// Waits until streams are to end.
    pub async fn begun(&mut self) -> DrainReason {
        let Self { stopping, fenced } = self;
        tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => DrainReason::Stopping,
            _ = fenced.wait_for(|fenced| *fenced) => DrainReason::Fenced,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn streams_end_when_the_server_stops_or_is_fenced_or_is_gone() {
        let senders = || (watch::Sender::new(false), watch::Sender::new(false));
        let (stopping, fenced) = senders();
        let mut drain = Drain::new(stopping.subscribe(), fenced.subscribe());
        stopping.send_replace(true);
        assert_eq!(drain.begun().await, DrainReason::Stopping);
        let (stopping, fenced) = senders();
        let mut drain = Drain::new(stopping.subscribe(), fenced.subscribe());
        fenced.send_replace(true);
        assert_eq!(drain.begun().await, DrainReason::Fenced);
        let (stopping, fenced) = senders();
        let mut drain = Drain::new(stopping.subscribe(), fenced.subscribe());
        drop(stopping);
        assert_eq!(drain.begun().await, DrainReason::Stopping);
        drain.stopping().await;
    }
}
