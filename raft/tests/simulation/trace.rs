//! What happened in a run: the last events as text for people, and a hash of all of them.

use std::collections::VecDeque;
use std::fmt::Display;

use tokio::time::Instant;

/// Events and, apart from them, messages kept for the report of a failure.
const EVENTS_MAX: usize = 150;
const MESSAGES_MAX: usize = 150;

pub(crate) struct Trace {
    begun: Instant,
    /// With the number of the event.
    events: VecDeque<(u64, String)>,
    messages: VecDeque<(u64, String)>,
    hash: u64,
    count: u64,
}

impl Trace {
    pub(crate) fn new() -> Trace {
        Trace {
            begun: Instant::now(),
            events: VecDeque::new(),
            messages: VecDeque::new(),
            hash: 0xcbf2_9ce4_8422_2325,
            count: 0,
        }
    }

    /// Simulated microseconds since the start.
    pub(crate) fn now_us(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }

    /// Notes an event worth reading.
    pub(crate) fn note(&mut self, event: impl Display) {
        let line = self.line(event);
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(line);
    }

    /// Notes a message, of which there are many.
    pub(crate) fn note_message(&mut self, message: impl Display) {
        let line = self.line(message);
        if self.messages.len() == MESSAGES_MAX {
            self.messages.pop_front();
        }
        self.messages.push_back(line);
    }

    /// Notes an event that only has to happen again in a replay.
    pub(crate) fn count(&mut self, what: u64) {
        let now = self.now_us();
        self.fold(what ^ now.rotate_left(32));
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn events(&self) -> u64 {
        self.count
    }

    pub(crate) fn last_lines(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.events.iter().chain(&self.messages).collect();
        lines.sort();
        lines.into_iter().map(|(_, line)| line.clone()).collect()
    }

    fn line(&mut self, event: impl Display) -> (u64, String) {
        let now = self.now_us();
        let line = format!("{:>6}.{:03} ms  {event}", now / 1000, now % 1000);
        self.fold(fnv(line.as_bytes()));
        (self.count, line)
    }

    fn fold(&mut self, what: u64) {
        self.count += 1;
        self.hash = (self.hash ^ what).wrapping_mul(0x0000_0100_0000_01b3);
    }
}

/// Fowler-Noll-Vo, 64 bits.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
