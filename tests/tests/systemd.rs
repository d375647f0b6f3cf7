//! What systemd is told by a member it runs: that it is ready, that it lives, that it stops.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use kv_tests::{Kvd, KvdOptions};

/// A member has this long for what it should tell.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn systemd_hears_of_readiness_signs_of_life_and_the_stop() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let notices = Notices::bind(&path);
    let env = vec![
        ("NOTIFY_SOCKET".to_owned(), path.display().to_string()),
        ("WATCHDOG_USEC".to_owned(), "100000".to_owned()),
    ];
    let options = KvdOptions {
        env,
        ..Default::default()
    };
    let mut kvd = Kvd::start(&folder.path().join("data"), options);

    assert_eq!(notices.next(), "READY=1");
    assert_eq!(notices.next(), "WATCHDOG=1");
    assert_eq!(notices.next(), "WATCHDOG=1");
    let status = kvd.terminate();
    assert!(status.success(), "{status}");
    while notices.next() != "STOPPING=1" {}
}

struct Notices(UnixDatagram);

impl Notices {
    fn bind(path: &std::path::Path) -> Notices {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Notices(socket)
    }

    fn next(&self) -> String {
        let mut buffer = [0; 256];
        let len = self.0.recv(&mut buffer).expect("a notice in time");
        String::from_utf8_lossy(&buffer[..len])
            .trim_end()
            .to_owned()
    }
}
