//! Threads for reads that take long: few, and with less right to the processor than those of requests, raft and log.
//!
//! A small read that has to ask the engine never waits behind them, since it has threads of its own.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{Error, Result};

/// Large reads that run at the same time.
const THREADS: usize = 2;
/// How much they stand back: other threads get about three times their share.
const NICE: i32 = 5;

type Job = Box<dyn FnOnce() + Send>;

/// The threads; they end when this is dropped.
pub(crate) struct LargeReads {
    jobs: Mutex<Sender<Job>>,
}

impl LargeReads {
    pub(crate) fn start() -> io::Result<LargeReads> {
        let (jobs, waiting) = mpsc::channel();
        let waiting = Arc::new(Mutex::new(waiting));
        for n in 0..THREADS {
            let waiting = Arc::clone(&waiting);
            thread::Builder::new()
                .name(format!("large-read-{n}"))
                .spawn(move || work(&waiting))?;
        }
        Ok(LargeReads {
            jobs: Mutex::new(jobs),
        })
    }

    /// Runs `read` on one of the threads. How many may wait is for the caller to bound.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (done, result) = oneshot::channel();
        let job = Box::new(move || {
            // Nobody waits any more: then it need not be done.
            if !done.is_closed() {
                let _ = done.send(read());
            }
        });
        self.jobs.lock().send(job).map_err(|_| Error::Stopped)?;
        result.await.map_err(|_| Error::Stopped)?
    }
}

fn work(waiting: &Mutex<Receiver<Job>>) {
    // Of this thread alone; without it the reads only compete as others do.
    let _ = rustix::process::nice(NICE);
    loop {
        let job = waiting.lock().recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn reads_run_and_those_nobody_waits_for_do_not() {
        let reads = LargeReads::start().unwrap();
        // Both threads are busy until they are told to go on.
        let (go, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let mut busy = Vec::new();
        for _ in 0..THREADS {
            let gate = Arc::clone(&gate);
            busy.push(Box::pin(reads.run(move || {
                let _ = gate.lock().recv();
                Ok(1)
            })));
        }
        for read in &mut busy {
            assert!(poll(read.as_mut()).is_pending());
        }
        let ran = Arc::new(Mutex::new(false));
        {
            let ran = Arc::clone(&ran);
            let forgotten = reads.run(move || {
                *ran.lock() = true;
                Ok(())
            });
            let mut forgotten = std::pin::pin!(forgotten);
            assert!(poll(forgotten.as_mut()).is_pending());
        }
        drop(go);
        for read in busy {
            assert_eq!(read.await, Ok(1));
        }
        assert_eq!(reads.run(|| Ok(2)).await, Ok(2));
        assert!(!*ran.lock());
    }
}
