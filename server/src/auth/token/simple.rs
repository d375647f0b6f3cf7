//! Simple tokens: random letters and the log index that gave them, held in memory by every member.
//!
//! ```text
//! KcGzRbtaSmyWnxgB.42
//! ```
//! An entry brings the letters to every member, so any of them takes the token; one that has not applied the index yet
//! waits for it. A token lives from use to use for a time, and ends with its user, with a new password and with auth
//! itself. A member that starts knows those of the entries it replays. Deadlines come from this member's own clock:
//! nothing that is agreed on depends on them. Source: etcd 3.7, auth/simple_token.go.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rand::RngExt;

/// Letters of a token.
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
const LETTERS_LEN: usize = 16;
/// Expired tokens are looked for this often at most.
const SWEEP_PERIOD: Duration = Duration::from_secs(1);

/// The tokens this member takes.
pub(crate) struct SimpleTokens {
    ttl: Duration,
    held: RwLock<HashMap<String, Held>>,
    swept: Mutex<Duration>,
}

struct Held {
    user: Arc<str>,
    /// Time since process start, in milliseconds.
    expires_ms: AtomicU64,
}

impl SimpleTokens {
    /// Tokens that live for `ttl` after their last use.
    pub(crate) fn new(ttl: Duration) -> SimpleTokens {
        SimpleTokens {
            ttl,
            held: RwLock::default(),
            swept: Mutex::default(),
        }
    }

    /// Holds the token made of `letters` and `index` for `user`; returns it.
    pub(crate) fn assign(&self, letters: &str, index: u64, user: &str, now: Duration) -> String {
        let token = format!("{letters}.{index}");
        let held = Held {
            user: user.into(),
            expires_ms: AtomicU64::new(self.deadline_ms(now)),
        };
        self.sweep(now);
        self.held.write().insert(token.clone(), held);
        token
    }

    /// Whose token it is; using it lengthens its life.
    pub(crate) fn user(&self, token: &str, now: Duration) -> Option<Arc<str>> {
        let held = self.held.read();
        let held = held.get(token)?;
        if held.expires_ms.load(Ordering::Relaxed) < millis(now) {
            return None;
        }
        held.expires_ms
            .store(self.deadline_ms(now), Ordering::Relaxed);
        Some(held.user.clone())
    }

    /// Ends the tokens of `user`.
    pub(crate) fn end_of(&self, user: &str) {
        self.held.write().retain(|_, held| &*held.user != user);
    }

    /// Ends all tokens.
    pub(crate) fn end_all(&self) {
        self.held.write().clear();
    }

    fn sweep(&self, now: Duration) {
        let mut swept = self.swept.lock();
        if now.saturating_sub(*swept) < SWEEP_PERIOD {
            return;
        }
        *swept = now;
        let now = millis(now);
        self.held
            .write()
            .retain(|_, held| held.expires_ms.load(Ordering::Relaxed) >= now);
    }

    fn deadline_ms(&self, now: Duration) -> u64 {
        millis(now.saturating_add(self.ttl))
    }
}

/// Fresh letters, from the operating system's generator by way of a stream cipher.
pub(crate) fn letters() -> String {
    let mut generator = rand::rng();
    let letter = || char::from(LETTERS[generator.random_range(0..LETTERS.len())]);
    std::iter::repeat_with(letter).take(LETTERS_LEN).collect()
}

/// The log index a token names; `None` if it has not the form of one.
pub(crate) fn index_of(token: &str) -> Option<u64> {
    let (_, index) = token.split_once('.')?;
    if index.starts_with('+') {
        return None;
    }
    index.parse().ok()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_token_lives_from_use_to_use() {
        let tokens = SimpleTokens::new(TTL);
        let token = tokens.assign("letters", 42, "alice", at(0));
        assert_eq!(token, "letters.42");
        assert_eq!(tokens.user(&token, at(9)).as_deref(), Some("alice"));
        assert_eq!(tokens.user(&token, at(18)).as_deref(), Some("alice"));
        assert_eq!(tokens.user(&token, at(29)), None);
    }

    #[test]
    fn expired_tokens_take_no_memory() {
        let tokens = SimpleTokens::new(TTL);
        tokens.assign("a", 1, "alice", at(0));
        tokens.assign("b", 2, "alice", at(11));
        assert_eq!(tokens.held.read().len(), 1);
    }

    #[test]
    fn tokens_end_with_their_user_or_with_all() {
        let tokens = SimpleTokens::new(TTL);
        let alices = tokens.assign("a", 1, "alice", at(0));
        let bobs = tokens.assign("b", 2, "bob", at(0));
        tokens.end_of("alice");
        assert_eq!(tokens.user(&alices, at(1)), None);
        assert!(tokens.user(&bobs, at(1)).is_some());
        tokens.end_all();
        assert_eq!(tokens.user(&bobs, at(1)), None);
    }

    #[test]
    fn letters_are_16_and_differ() {
        let (one, other) = (letters(), letters());
        assert_eq!(one.len(), 16);
        assert!(one.bytes().all(|letter| letter.is_ascii_alphabetic()));
        assert_ne!(one, other);
    }

    #[test]
    fn the_index_is_behind_the_only_dot() {
        assert_eq!(index_of("abc.17"), Some(17));
        for bad in ["abc", "abc.", "abc.x", "abc.-1", "abc.+1", "a.1.2", ""] {
            assert_eq!(index_of(bad), None, "{bad}");
        }
    }
}
