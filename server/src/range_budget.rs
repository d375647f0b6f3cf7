//! How much memory the answers to large reads may take at a time.
//!
//! An answer counts from before it is read until it is sent. What it will take is estimated; once it is known the
//! difference is settled, so the sum is exceeded only by how wrong the estimates of the reads under way are, and by an
//! answer that is larger than everything, which goes alone. Those who wait are served in their order; too many, or too
//! long, and they are told so in etcd's words for overload. Small reads do not wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::{Error, Result};

/// Answers below this are neither counted nor held up.
pub(crate) const SMALL_BYTES: u64 = 1 << 20;
/// Large reads that may wait.
const WAITING_MAX: usize = 1000;

/// The sum of what large answers take, and who waits for a part of it.
pub(crate) struct RangeBudget {
    bytes_max: u64,
    wait_max: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    used: u64,
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    bytes: u64,
    granted: oneshot::Sender<Grant>,
}

/// A part of the budget, given back when it is dropped.
pub(crate) struct Grant {
    budget: Arc<RangeBudget>,
    bytes: u64,
}

impl RangeBudget {
    /// `wait_max` is how long a read may wait for its part.
    pub(crate) fn new(bytes_max: u64, wait_max: Duration) -> Arc<RangeBudget> {
        Arc::new(RangeBudget {
            bytes_max,
            wait_max,
            state: Mutex::default(),
        })
    }

    /// A part of about `bytes`, when there is room for it; `None` at once for a small one.
    ///
    /// Errors: [`Error::TooManyRequests`].
    pub(crate) async fn acquire(self: &Arc<Self>, bytes: u64) -> Result<Option<Grant>> {
        if bytes < SMALL_BYTES {
            return Ok(None);
        }
        let waiter = {
            let mut state = self.state.lock();
            if state.waiting.is_empty() && self.has_room(state.used, bytes) {
                state.used += bytes;
                return Ok(Some(self.grant(bytes)));
            }
            if state.waiting.len() >= WAITING_MAX {
                return Err(Error::TooManyRequests);
            }
            let (granted, waiter) = oneshot::channel();
            state.waiting.push_back(Waiter { bytes, granted });
            waiter
        };
        match timeout(self.wait_max, waiter).await {
            Ok(Ok(grant)) => Ok(Some(grant)),
            Ok(Err(_)) | Err(_) => Err(Error::TooManyRequests),
        }
    }

    /// Makes `held` what the answer really takes, without waiting: it is there already.
    pub(crate) fn settle(self: &Arc<Self>, held: Option<Grant>, bytes: u64) -> Option<Grant> {
        let estimated = held.as_ref().map_or(0, |grant| grant.bytes);
        if bytes < SMALL_BYTES || bytes == estimated {
            return held.filter(|_| bytes >= SMALL_BYTES);
        }
        if bytes > estimated {
            self.state.lock().used += bytes - estimated;
        } else {
            self.release(estimated - bytes);
        }
        if let Some(grant) = held {
            grant.forget();
        }
        Some(self.grant(bytes))
    }

    /// Bytes that large answers take now.
    #[cfg(test)]
    fn used(&self) -> u64 {
        self.state.lock().used
    }

    fn grant(self: &Arc<Self>, bytes: u64) -> Grant {
        Grant {
            budget: Arc::clone(self),
            bytes,
        }
    }

    fn has_room(&self, used: u64, bytes: u64) -> bool {
        used == 0 || used.saturating_add(bytes) <= self.bytes_max
    }

    fn release(self: &Arc<Self>, bytes: u64) {
        let mut unwanted = Vec::new();
        {
            let mut state = self.state.lock();
            assert!(
                bytes <= state.used,
                "{bytes} bytes of {} are given back",
                state.used
            );
            state.used -= bytes;
            while let Some(waiter) = state.waiting.front() {
                let wants = waiter.bytes;
                let gone = waiter.granted.is_closed();
                if !gone && !self.has_room(state.used, wants) {
                    break;
                }
                let Some(waiter) = state.waiting.pop_front() else {
                    break;
                };
                if !gone {
                    state.used += wants;
                    unwanted.extend(waiter.granted.send(self.grant(wants)).err());
                }
            }
        }
        // Whoever stopped waiting in this moment gives its part back, which takes the lock again.
        drop(unwanted);
    }
}

impl Grant {
    /// Drops it without giving anything back.
    fn forget(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.release(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    const MB: u64 = 1 << 20;

    fn budget(bytes_max: u64) -> Arc<RangeBudget> {
        RangeBudget::new(bytes_max, Duration::from_secs(7))
    }

    fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    async fn granted(budget: &Arc<RangeBudget>, bytes: u64) -> Grant {
        budget.acquire(bytes).await.unwrap().expect("a large one")
    }

    #[tokio::test]
    async fn small_reads_never_wait() {
        let budget = budget(10 * MB);
        let _all = granted(&budget, 10 * MB).await;
        assert!(budget.acquire(MB - 1).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn waiting_reads_are_served_in_their_order() {
        let budget = budget(10 * MB);
        let first = granted(&budget, 8 * MB).await;
        let mut second = pin!(budget.acquire(5 * MB));
        assert!(poll(second.as_mut()).is_pending());
        // It would fit, and waits behind the one that came before.
        let mut third = pin!(budget.acquire(2 * MB));
        assert!(poll(third.as_mut()).is_pending());
        drop(first);
        assert!(poll(second.as_mut()).is_ready());
        assert!(poll(third.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn read_that_is_larger_than_everything_goes_alone() {
        let budget = budget(10 * MB);
        let small = granted(&budget, 2 * MB).await;
        let mut huge = pin!(budget.acquire(500 * MB));
        assert!(poll(huge.as_mut()).is_pending());
        drop(small);
        let Poll::Ready(Ok(Some(huge))) = poll(huge.as_mut()) else {
            panic!("nothing else is under way")
        };
        let mut next = pin!(budget.acquire(2 * MB));
        assert!(poll(next.as_mut()).is_pending());
        drop(huge);
        assert!(poll(next.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn who_waits_too_long_or_is_one_too_many_is_told_so() {
        let impatient = RangeBudget::new(10 * MB, Duration::from_millis(1));
        let _all = granted(&impatient, 10 * MB).await;
        let refused = impatient.acquire(5 * MB).await.err();
        assert_eq!(refused, Some(Error::TooManyRequests));

        let budget = budget(10 * MB);
        let all = granted(&budget, 10 * MB).await;
        let mut waiting: Vec<_> = (0..WAITING_MAX)
            .map(|_| Box::pin(budget.acquire(5 * MB)))
            .collect();
        for waiter in &mut waiting {
            assert!(poll(waiter.as_mut()).is_pending());
        }
        let mut one_more = pin!(budget.acquire(5 * MB));
        let Poll::Ready(Err(refused)) = poll(one_more.as_mut()) else {
            panic!("it waits too")
        };
        assert_eq!(refused, Error::TooManyRequests);
        // Those that went away are not waited for.
        drop(waiting);
        drop(all);
        assert_eq!(budget.used(), 0);
        granted(&budget, 10 * MB).await;
    }

    #[tokio::test]
    async fn difference_to_the_estimate_is_settled() {
        let budget = budget(10 * MB);
        let grant = granted(&budget, 4 * MB).await;
        let grant = budget.settle(Some(grant), 9 * MB);
        assert_eq!(budget.used(), 9 * MB);
        let mut next = pin!(budget.acquire(3 * MB));
        assert!(poll(next.as_mut()).is_pending());
        let grant = budget.settle(grant, 2 * MB);
        assert_eq!(budget.used(), 5 * MB);
        let Poll::Ready(Ok(next)) = poll(next.as_mut()) else {
            panic!("there is room")
        };
        assert!(budget.settle(next, MB / 2).is_none());
        assert!(budget.settle(None, MB / 2).is_none());
        let unforeseen = budget.settle(None, 3 * MB);
        assert_eq!(budget.used(), 5 * MB);
        drop((grant, unforeseen));
        assert_eq!(budget.used(), 0);
    }
}
