use super::*;

/// A state of one chunk that can be read again.
struct Whole(u64);

impl SnapshotSource for Whole {
    fn applied(&self) -> Applied {
        Applied {
            index: self.0,
            ..Applied::default()
        }
    }

    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        Ok(Some(Bytes::from_static(b"chunk")))
    }

    fn again(&self) -> Option<Box<dyn SnapshotSource>> {
        Some(Box::new(Whole(self.0)))
    }
}

#[tokio::test]
async fn state_that_was_read_is_kept_for_a_while_with_the_log_behind_it() {
    let shelf = Shelf::default();
    let mut reader = shelf.put(Box::new(Whole(100)));
    let pin = reader.pin();
    reader.next_chunk().unwrap();
    drop(reader);

    assert_eq!(shelf.held().unwrap().index, 100);
    let again = shelf.pinned(100).expect("it is kept");
    assert_eq!(again.pin(), pin, "the same bytes");
    drop(again);
    let now = Instant::now();
    shelf.0.lock().sweep(now + PINNED / 2);
    assert!(shelf.pinned(0).is_some(), "it was read not long ago");
    shelf.0.lock().sweep(now + PINNED);
    assert!(shelf.pinned(0).is_none());
    assert!(shelf.held().is_none());
}

#[tokio::test]
async fn state_that_nobody_read_is_not_kept() {
    let shelf = Shelf::default();
    drop(shelf.put(Box::new(Whole(100))));
    assert!(shelf.held().is_none());
    assert!(shelf.pinned(0).is_none());
}

#[tokio::test]
async fn state_that_is_installed_or_of_no_use_any_more_is_let_go() {
    let shelf = Shelf::default();
    let mut reader = shelf.put(Box::new(Whole(100)));
    reader.next_chunk().unwrap();
    assert!(shelf.pinned(101).is_none(), "the log begins behind it");
    let mut other = shelf.put(Box::new(Whole(200)));
    other.next_chunk().unwrap();
    shelf.release(reader.pin().unwrap());
    assert!(shelf.pinned(200).is_some(), "another one was released");
    shelf.release(other.pin().unwrap());
    assert!(shelf.pinned(200).is_none());
}
