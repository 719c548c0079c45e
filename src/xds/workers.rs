//! The threads that serve. A connection stays with its streams on the thread that it was given to.
//!
//! The threads of a single runtime would share their work: each that is woken from outside wakes another to look for more. With a
//! change of one service there is nothing more, and to look for it took a twentieth of the CPU of such a change.

use std::sync::Arc;

use tokio::{runtime::Handle, sync::mpsc};

/// Connections that may wait for a thread to take them.
const WAITING: usize = 64;

/// A thread that serves; `C` is a connection.
#[derive(Debug)]
struct Worker<C> {
    runtime: Handle,
    out: mpsc::Sender<C>,
    /// Shared with the seats of the connections that the thread has.
    seats: Arc<()>,
}

/// See the module.
#[derive(Debug)]
pub struct Workers<C>(Vec<Worker<C>>);

/// Counts a connection among those of its thread, until it is dropped.
#[derive(Debug)]
pub struct Seat {
    _counted: Arc<()>,
}

impl<C> Workers<C> {
    /// Threads, each with a runtime of its own, and where each gets its connections from.
    pub fn new(runtimes: impl IntoIterator<Item = Handle>) -> (Self, Vec<(Handle, mpsc::Receiver<C>)>) {
        let with_receiver = |runtime: Handle| {
            let (out, connections) = mpsc::channel(WAITING);
            (Worker { runtime: runtime.clone(), out, seats: Arc::default() }, (runtime, connections))
        };
        let (workers, receivers) = runtimes.into_iter().map(with_receiver).unzip();
        (Self(workers), receivers)
    }

    /// The thread with the fewest connections of those that take any, with a seat on it; of several the last, since the first has the
    /// engine's other tasks. `None`: no thread takes connections any more.
    pub fn seat(&self) -> Option<(Handle, mpsc::Sender<C>, Seat)> {
        let open = self.0.iter().rev().filter(|worker| !worker.out.is_closed());
        let least = open.min_by_key(|worker| Arc::strong_count(&worker.seats))?;
        Some((least.runtime.clone(), least.out.clone(), Seat { _counted: Arc::clone(&least.seats) }))
    }

    /// Waits until no thread takes connections any more.
    pub async fn closed(&self) {
        for worker in &self.0 {
            worker.out.closed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_goes_where_the_fewest_are_of_those_that_take_any() {
        let (workers, mut receivers) = Workers::new([Handle::current(), Handle::current(), Handle::current()]);
        let mut seats = Vec::new();
        for n in 0..7 {
            let (_, out, seat) = workers.seat().unwrap();
            out.send(n).await.unwrap();
            seats.push(seat);
        }
        let taken =
            |receiver: &mut mpsc::Receiver<i32>| std::iter::from_fn(|| receiver.try_recv().ok()).collect::<Vec<_>>();
        let all: Vec<_> = receivers.iter_mut().map(|(_, receiver)| taken(receiver)).collect();
        assert_eq!(all, [vec![2, 5], vec![1, 4], vec![0, 3, 6]]);
        drop((seats.swap_remove(0), seats.swap_remove(3)));
        workers.seat().unwrap().1.send(7).await.unwrap();
        assert_eq!(taken(&mut receivers[2].1), [7], "where connections have gone");
        drop(receivers.pop());
        workers.seat().unwrap().1.send(8).await.unwrap();
        assert_eq!(taken(&mut receivers[1].1), [8], "not where they are no longer taken, though none is there");
        drop(receivers);
        assert!(workers.seat().is_none());
        workers.closed().await;
    }
}
