//! openraft's runtime: tokio, with random numbers that a simulation can seed.
//!
//! openraft draws its election timeouts from the runtime it is given. Its own tokio runtime takes
//! them from the operating system; with this one a thread that called [`seed_this_thread`] gets a
//! sequence that depends on the seed alone, so that a simulated cluster, which runs on one thread,
//! can be run again.

use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::OptionalSend;
// The crate that openraft names instead is not a dependency of its own here.
#[allow(deprecated)]
use openraft::impls::TokioRuntime;
use rand::SeedableRng;
use rand::rngs::SmallRng;

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Makes the random numbers of every node that runs on this thread a function of `seed` and of the
/// order in which they are drawn. For simulations on a runtime of one thread.
pub fn seed_this_thread(seed: u64) {
    SEED.set(Some(seed));
}

/// What openraft runs on.
#[derive(Debug)]
pub(crate) struct Runtime(Tokio);

#[allow(deprecated)]
type Tokio = TokioRuntime;

impl AsyncRuntime for Runtime {
    type JoinError = <Tokio as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <Tokio as AsyncRuntime>::Sleep;
    type Instant = <Tokio as AsyncRuntime>::Instant;
    type TimeoutError = <Tokio as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <Tokio as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = <Tokio as AsyncRuntime>::Mpsc;
    type Watch = <Tokio as AsyncRuntime>::Watch;
    type Oneshot = <Tokio as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        Tokio::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Tokio::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Tokio::sleep_until(deadline)
    }

    fn timeout<R, F>(duration: Duration, future: F) -> Self::Timeout<R, F>
    where
        F: Future<Output = R> + OptionalSend,
    {
        Tokio::timeout(duration, future)
    }

    fn timeout_at<R, F>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F>
    where
        F: Future<Output = R> + OptionalSend,
    {
        Tokio::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        Tokio::is_panic(error)
    }

    fn thread_rng() -> SmallRng {
        match SEED.get() {
            Some(seed) => {
                SEED.set(Some(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)));
                SmallRng::seed_from_u64(seed)
            }
            None => SmallRng::from_rng(&mut rand::rng()),
        }
    }

    fn new(threads: usize) -> Runtime {
        Runtime(Tokio::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

    #[test]
    fn a_seeded_thread_draws_the_same_again_and_no_other_thread_is_seeded() {
        let draw = || {
            (0..4)
                .map(|_| Runtime::thread_rng().random::<u64>())
                .collect::<Vec<_>>()
        };
        seed_this_thread(7);
        let first = draw();
        seed_this_thread(7);
        assert_eq!(draw(), first);
        seed_this_thread(8);
        assert_ne!(draw(), first);
        let others = std::thread::spawn(move || (draw(), draw()));
        let (one, another) = others.join().unwrap();
        assert_ne!(one, another);
    }
}
