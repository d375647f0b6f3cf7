//! Passwords: bcrypt on a few threads of a bounded pool, never on those that serve connections.
//!
//! A password is turned into a hash before anything is proposed, so it is in no log entry; and it is in no message, log
//! line or error. One hash takes tens of milliseconds on purpose. Source: etcd 3.7, auth/store.go.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bcrypt::Version;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::{Error, Result};

/// Passwords that may wait for a thread.
const WAITING_MAX: usize = 1024;
/// bcrypt looks at no more; a longer password is refused rather than cut.
const PASSWORD_BYTES_MAX: usize = 72;

/// Hashes and compares passwords.
pub(crate) struct Passwords {
    cost: u32,
    /// Longest wait for a thread.
    patience: Duration,
    running: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
}

impl Passwords {
    /// `cost` is `--bcrypt-cost`; `patience` bounds the wait behind others.
    pub(crate) fn new(cost: u32, patience: Duration) -> Passwords {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Passwords {
            cost,
            patience,
            running: Arc::new(Semaphore::new(cores.div_ceil(2))),
            admitted: Arc::new(Semaphore::new(WAITING_MAX)),
        }
    }

    /// The hash of a new password, in base64 as commands carry it.
    pub(crate) async fn hash(&self, password: String) -> Result<String> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(Error::PasswordTooLong);
        }
        let cost = self.cost;
        let hash = self
            .run(move || bcrypt::hash_with_result(password, cost))
            .await?;
        let hash = hash.map_err(|error| Error::Storage(error.to_string()))?;
        Ok(BASE64.encode(hash.format_for_version(Version::TwoA)))
    }

    /// Whether `hash` is of `password`; a hash that cannot be read is of none.
    pub(crate) async fn is_of(&self, hash: Bytes, password: String) -> Result<bool> {
        self.run(move || {
            std::str::from_utf8(&hash)
                .is_ok_and(|hash| bcrypt::verify(password, hash).unwrap_or(false))
        })
        .await
    }

    /// Runs other slow work with secrets, such as a signature.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let admitted = self.admitted.clone().try_acquire_owned();
        let admitted = admitted.map_err(|_| Error::TooManyRequests)?;
        let running = timeout(self.patience, self.running.clone().acquire_owned()).await;
        let running = running
            .map_err(|_| Error::Timeout)?
            .map_err(|_| Error::Stopped)?;
        // The work goes on when the caller does not wait any longer, and counts until its end.
        let work = move || {
            let _permits = (admitted, running);
            work()
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| Error::Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hash_is_of_its_password_alone_and_has_gos_form() {
        let passwords = Passwords::new(4, Duration::from_secs(60));
        let hash = passwords.hash("secret".into()).await.unwrap();
        let hash = Bytes::from(BASE64.decode(hash).unwrap());
        assert!(hash.starts_with(b"$2a$04$"), "{hash:?}");
        assert_eq!(
            passwords.is_of(hash.clone(), "secret".into()).await,
            Ok(true)
        );
        assert_eq!(passwords.is_of(hash, "Secret".into()).await, Ok(false));
    }

    #[tokio::test]
    async fn a_hash_of_gos_library_is_read() {
        // Made by golang.org/x/crypto/bcrypt with cost 4 for "hello".
        let hash = Bytes::from_static(GO_HASH.as_bytes());
        let passwords = Passwords::new(4, Duration::from_secs(60));
        assert_eq!(
            passwords.is_of(hash.clone(), "hello".into()).await,
            Ok(true)
        );
        assert_eq!(passwords.is_of(hash, "hullo".into()).await, Ok(false));
    }

    #[tokio::test]
    async fn what_is_too_long_or_no_hash_is_refused() {
        let passwords = Passwords::new(4, Duration::from_secs(60));
        let long = "x".repeat(PASSWORD_BYTES_MAX + 1);
        assert_eq!(passwords.hash(long).await, Err(Error::PasswordTooLong));
        let longest = "x".repeat(PASSWORD_BYTES_MAX);
        assert!(passwords.hash(longest).await.is_ok());
        let empty = passwords.is_of(Bytes::new(), String::new()).await;
        assert_eq!(empty, Ok(false));
    }

    const GO_HASH: &str = "$2a$04$RBlUkDMPWDQz5soAwR4dsuEG5NbjwWfT.VQD43dQsDD1TpF5PZqoi";
}
