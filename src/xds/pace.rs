//! How much of a client's time pushes may take.
//!
//! istiod decodes and compares all of a source on every push, so a client that is pushed to as fast as it can take does
//! nothing else. From a response to its ACK the client counts as busy; after that it rests so long that it is busy for
//! `mox.push.duty` of the time at most, but no change waits for longer than `mox.push.max`. The streams of one client (one
//! istiod may have many, each for a partition) share its time, and the one with the oldest change is next.
//!
//! Who a client is, is its own word, so a stream may be another's. Streams share a client's time only if they make sense together,
//! each for another partition of one number; and one that answers much more slowly than the others pays for itself: the others wait
//! for it no longer than they would for one of them.
//!
//! A value without IO: the caller says what time it is.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::Notify, time::Instant};

use crate::snapshot::partition::Partition;

/// How many times as long as the fastest of a client's other streams one may take to answer.
const SLOWER: u32 = 4;
/// An answer within this time is never slow.
const FAST: Duration = Duration::from_millis(10);

/// How much of a client's time pushes may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PaceRule {
    /// Share of a client's time that pushes may take; 0 < duty ≤ 1.
    pub duty: f64,
    /// How long a change waits at most.
    pub max: Duration,
}

impl PaceRule {
    /// How long a client rests that was busy for so long.
    fn rest(&self, busy: Duration) -> Duration {
        let rest = Duration::try_from_secs_f64(busy.as_secs_f64() * (1.0 / self.duty - 1.0));
        // A rest that is longer than any Duration is longer than the maximum.
        rest.map_or(self.max, |rest| rest.min(self.max))
    }
}

/// A stream among those of a client.
pub type Ticket = u64;

/// When the streams of one client may push.
#[derive(Debug)]
pub struct Pace {
    rule: PaceRule,
    /// Until when the client rests.
    rests_until: Option<Instant>,
    /// When the client's last answer came: until then the time it was busy is counted.
    counted_until: Option<Instant>,
    /// The stream whose push is unanswered, and until when that keeps the other streams waiting.
    turn: Option<(Ticket, Instant)>,
    /// The streams that wait, the oldest change first.
    queue: BTreeMap<(Instant, Ticket), Arc<Notify>>,
    streams: BTreeMap<Ticket, Member>,
}

/// A stream of those that share a client's time.
#[derive(Debug)]
struct Member {
    partition: Partition,
    /// How long the client took for its last answer.
    took: Option<Duration>,
    /// For a stream that answers much more slowly than others, until when it rests; the others do not for it.
    apart: Option<Instant>,
}

impl Pace {
    /// The pace of a client that was sent nothing yet.
    pub fn new(rule: PaceRule) -> Self {
        Self {
            rule,
            rests_until: None,
            counted_until: None,
            turn: None,
            queue: BTreeMap::new(),
            streams: BTreeMap::new(),
        }
    }

    /// Adds a stream, if it makes sense together with those that are there.
    pub fn join(&mut self, ticket: Ticket, partition: Partition) -> bool {
        let fits = |other: &Member| other.partition.count() == partition.count() && other.partition != partition;
        let fits = self.streams.values().all(fits);
        if fits {
            self.streams.insert(ticket, Member { partition, took: None, apart: None });
        }
        fits
    }

    /// How long the others wait for an answer on a stream.
    fn patience(&self, ticket: Ticket) -> Duration {
        let others = self.streams.iter().filter(|(other, _)| **other != ticket);
        let fastest = others.filter_map(|(_, member)| member.took).min();
        fastest.map_or(self.rule.max, |fastest| (fastest * SLOWER).max(FAST).min(self.rule.max))
    }

    /// Asks to push a change that is there since `since`. `None`: now, and it is the stream's turn. Otherwise: when to ask
    /// again, or earlier if `wake` is notified.
    pub fn ask(&mut self, ticket: Ticket, since: Instant, now: Instant, wake: &Arc<Notify>) -> Option<Instant> {
        self.leave(ticket);
        let latest = since + self.rule.max;
        if let Some(rests_until) = self.streams.get(&ticket).and_then(|member| member.apart) {
            let at = rests_until.min(latest);
            return (at > now).then_some(at);
        }
        let at = match self.turn {
            _ if now >= latest => now,
            Some((other, until)) if other != ticket && now < until => latest.min(until),
            _ if self.queue.first_key_value().is_some_and(|(first, _)| *first < (since, ticket)) => latest,
            _ => self.rests_until.map_or(now, |until| until.min(latest)),
        };
        if at > now {
            self.queue.insert((since, ticket), Arc::clone(wake));
            return Some(at);
        }
        if self.rule.duty < 1.0 {
            self.turn = Some((ticket, now + self.patience(ticket)));
        }
        None
    }

    /// Notes that the client answered a response that was handed to the transport at `handed`.
    pub fn answered(&mut self, ticket: Ticket, handed: Instant, now: Instant) {
        // Where responses overlap, they took the client's time once.
        let busy = now.saturating_duration_since(self.counted_until.map_or(handed, |until| until.max(handed)));
        let (took, slow) = (now.saturating_duration_since(handed), busy > self.patience(ticket));
        let (alone, rest) = (now + self.rule.rest(took), self.rule.rest(busy));
        if let Some(member) = self.streams.get_mut(&ticket) {
            (member.took, member.apart) = (Some(took), slow.then_some(alone));
        }
        self.end_turn(ticket);
        if slow {
            return;
        }
        self.counted_until = Some(now);
        self.rests_until = Some(self.rests_until.map_or(now, |until| until.max(now)) + rest);
    }

    /// Notes that the stream waits no more: the client asked it for something, or it may not push for a while.
    pub fn passed(&mut self, ticket: Ticket) {
        if self.leave(ticket) {
            self.wake();
        }
    }

    /// Takes the stream out of the queue; whether it was there.
    fn leave(&mut self, ticket: Ticket) -> bool {
        let waiting = self.queue.len();
        self.queue.retain(|(_, waiting), _| *waiting != ticket);
        self.queue.len() < waiting
    }

    /// Notes that the stream has nothing to push any more.
    pub fn close(&mut self, ticket: Ticket) {
        self.leave(ticket);
        self.end_turn(ticket);
        self.wake();
    }

    /// Notes that the stream is gone.
    pub fn part(&mut self, ticket: Ticket) {
        self.streams.remove(&ticket);
        self.close(ticket);
    }

    fn end_turn(&mut self, ticket: Ticket) {
        if self.turn.is_some_and(|(holder, _)| holder == ticket) {
            self.turn = None;
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some((_, first)) = self.queue.first_key_value() {
            first.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(5);

    /// Streams that always have a change to push and a client that takes so long for each; how much of the time the client was
    /// busy, the number of pushes of each stream, and how long a change waited at most.
    fn simulate(duty: f64, ack: Duration, streams: u64, pushes: usize) -> (f64, Vec<usize>, Duration) {
        let wake = Arc::default();
        let mut pace = Pace::new(PaceRule { duty, max: MAX });
        (0..streams).for_each(|s| assert!(pace.join(s, Partition::new(s as usize, streams as usize).unwrap())));
        let start = Instant::now();
        let mut now = start;
        let mut since = vec![start; streams as usize];
        let (mut busy, mut count, mut longest) = (Duration::ZERO, vec![0; streams as usize], Duration::ZERO);
        for _ in 0..pushes {
            // All ask; nobody pushes before the earliest answer.
            let pushed = loop {
                let asked: Vec<_> = (0..streams).map(|s| (pace.ask(s, since[s as usize], now, &wake), s)).collect();
                if let Some((_, stream)) = asked.iter().find(|(at, _)| at.is_none()) {
                    break *stream;
                }
                now = asked.iter().filter_map(|(at, _)| *at).min().unwrap();
            };
            longest = longest.max(now - since[pushed as usize]);
            let handed = now;
            now += ack;
            busy += ack;
            pace.answered(pushed, handed, now);
            since[pushed as usize] = now;
            count[pushed as usize] += 1;
        }
        (busy.as_secs_f64() / (now - start).as_secs_f64(), count, longest)
    }

    #[test]
    fn the_client_is_busy_for_its_share_of_the_time_at_most() {
        for duty in [0.1, 0.5, 0.9] {
            for millis in [1, 10, 100, 400] {
                let (share, ..) = simulate(duty, Duration::from_millis(millis), 1, 200);
                assert!((share - duty).abs() < 0.02, "{duty} at {millis} ms: {share}");
            }
        }
    }

    #[test]
    fn no_change_waits_for_longer_than_the_maximum() {
        let (share, _, longest) = simulate(0.5, Duration::from_secs(20), 1, 20);
        assert!(longest <= MAX && share > 0.75, "{longest:?} {share}");
    }

    #[test]
    fn a_rest_is_never_longer_than_the_maximum_however_small_the_share() {
        for duty in [0.001, 1e-30, f64::MIN_POSITIVE, f64::from_bits(1), 0.0] {
            let rule = PaceRule { duty, max: MAX };
            assert_eq!(rule.rest(MAX * 1_000), MAX, "{duty}");
            assert_eq!(simulate(duty, Duration::from_secs(10), 1, 10).2, MAX, "{duty}");
        }
    }

    #[test]
    fn streams_share_the_time_of_their_client_and_take_turns() {
        let (share, count, longest) = simulate(0.5, Duration::from_millis(10), 64, 640);
        assert!((share - 0.5).abs() < 0.02, "{share}");
        assert_eq!(count, vec![10; 64], "the oldest change is next");
        assert!(longest < MAX);
    }

    #[test]
    fn with_all_of_the_time_nobody_waits() {
        let wake = Arc::default();
        let mut pace = Pace::new(PaceRule { duty: 1.0, max: MAX });
        let now = Instant::now();
        assert_eq!(pace.ask(1, now, now, &wake), None);
        assert_eq!(pace.ask(2, now, now, &wake), None, "another stream's push is unanswered, which is its own matter");
        pace.answered(1, now, now + MAX);
        assert_eq!(pace.ask(1, now + MAX, now + MAX, &wake), None);
    }

    #[test]
    fn a_stream_that_is_never_answered_keeps_others_waiting_once_and_not_for_long() {
        let wake = Arc::default();
        let mut pace = Pace::new(PaceRule { duty: 0.5, max: MAX });
        let start = Instant::now();
        assert_eq!(pace.ask(1, start, start, &wake), None);
        assert_eq!(pace.ask(2, start + MAX / 2, start + MAX / 2, &wake), Some(start + MAX));
        let later = start + MAX;
        assert_eq!(pace.ask(2, start + MAX / 2, later, &wake), None);
        pace.answered(2, later, later + MAX / 100);
        let next = later + MAX / 50;
        assert_eq!(pace.ask(2, next, next, &wake), None, "its turn is over");
    }

    #[test]
    fn a_stream_that_goes_makes_place_for_the_next() {
        let (first, second) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        let mut pace = Pace::new(PaceRule { duty: 0.5, max: MAX });
        let now = Instant::now();
        pace.ask(1, now, now, &first);
        assert!(pace.ask(2, now, now, &second).is_some());
        pace.close(1);
        let mut notified = Box::pin(second.notified());
        assert!(notified.as_mut().enable());
        assert_eq!(pace.ask(2, now, now, &second), None);
    }

    #[test]
    fn a_stream_that_pushed_without_asking_is_not_waited_for() {
        let (first, second) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        let mut pace = Pace::new(PaceRule { duty: 0.5, max: MAX });
        let now = Instant::now();
        pace.answered(1, now, now + MAX);
        let now = now + MAX;
        assert!(pace.ask(1, now, now, &first).is_some());
        let later = now + MAX / 10;
        assert_eq!(pace.ask(2, later, later, &second), Some(later + MAX), "the first has the older change");
        pace.passed(1);
        let mut notified = Box::pin(second.notified());
        assert!(notified.as_mut().enable());
        assert_eq!(pace.ask(2, later, later, &second), Some(now + MAX), "when the client has rested");
    }

    #[test]
    fn streams_that_make_no_sense_together_share_nothing() {
        let mut pace = Pace::new(PaceRule { duty: 0.5, max: MAX });
        let partition = |index, count| Partition::new(index, count).unwrap();
        assert!(pace.join(1, partition(0, 4)) && pace.join(2, partition(3, 4)));
        assert!(!pace.join(3, partition(3, 4)) && !pace.join(3, partition(0, 2)) && !pace.join(3, Partition::WHOLE));
        pace.part(2);
        assert!(pace.join(3, partition(3, 4)));
    }

    /// A client of several streams, one of them answered at once and with a change all the time; the others are not its own and
    /// are answered late, or never and then opened anew. How long its change waits at most, once it is known how fast it is.
    fn beside(late: Option<Duration>, others: u64) -> Duration {
        let wake = Arc::default();
        let mut pace = Pace::new(PaceRule { duty: 0.5, max: MAX });
        let partition = |index: u64| Partition::new(index as usize, 16).unwrap();
        (0..=others).for_each(|ticket| assert!(pace.join(ticket, partition(ticket))));
        let ack = Duration::from_millis(2);
        let step = Duration::from_millis(1);
        let start = Instant::now();
        let mut since = vec![start; 1 + others as usize];
        // Tickets of the others, and when each was pushed to.
        let mut open: Vec<(Ticket, Option<Instant>)> = (1..=others).map(|ticket| (ticket, None)).collect();
        let (mut own, mut longest, mut next) = (None::<Instant>, Duration::ZERO, 100);
        for millis in 0..60_000 {
            let now = start + step * millis;
            match own {
                Some(pushed) if now >= pushed + ack => {
                    pace.answered(0, pushed, now);
                    (own, since[0]) = (None, now);
                }
                Some(_) => {}
                None if pace.ask(0, since[0], now, &wake).is_none() => {
                    if millis > 10_000 {
                        longest = longest.max(now - since[0]);
                    }
                    own = Some(now);
                }
                None => {}
            }
            for (n, (ticket, pushed)) in open.iter_mut().enumerate() {
                match (*pushed, late) {
                    (Some(at), Some(late)) if now >= at + late => {
                        pace.answered(*ticket, at, now);
                        (*pushed, since[n + 1]) = (None, now);
                    }
                    // Never answered; the stream is opened anew each second.
                    (Some(at), None) if now >= at + Duration::from_secs(1) => {
                        pace.part(*ticket);
                        (*ticket, *pushed, since[n + 1], next) = (next, None, now, next + 1);
                        assert!(pace.join(*ticket, partition(n as u64 + 1)));
                    }
                    (None, _) if pace.ask(*ticket, since[n + 1], now, &wake).is_none() => *pushed = Some(now),
                    _ => {}
                }
            }
        }
        longest
    }

    #[test]
    fn a_stream_that_answers_much_more_slowly_than_the_others_pays_for_itself() {
        for late in [Some(Duration::from_secs(4)), Some(Duration::from_millis(200)), None] {
            let waits = beside(late, 3);
            assert!(waits <= Duration::from_millis(100), "{late:?}: {waits:?}");
        }
        // A slow stream pays for itself: it is pushed to for its share of the time, as if it were alone.
        let wake = Arc::default();
        let mut pace = Pace::new(PaceRule { duty: 0.5, max: MAX });
        let partition = |index| Partition::new(index, 2).unwrap();
        assert!(pace.join(1, partition(0)) && pace.join(2, partition(1)));
        let start = Instant::now();
        let (fast, slow) = (Duration::from_millis(1), Duration::from_secs(1));
        pace.answered(1, start, start + fast);
        pace.answered(2, start, start + slow);
        let now = start + slow;
        assert_eq!(pace.ask(2, now, now, &wake), Some(now + slow));
        assert_eq!(pace.ask(1, now, now, &wake), None);
        // When it keeps up again it is one of them again.
        pace.answered(1, now, now + fast);
        let later = now + slow;
        assert_eq!(pace.ask(2, now, later, &wake), None);
        pace.answered(2, later, later + fast);
        assert_eq!(pace.ask(1, later + fast, later + fast, &wake), Some(later + 2 * fast));
    }
}
