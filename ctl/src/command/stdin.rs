//! Lines of standard input, read by a thread so that waiting for them stops nothing else.

use std::{
    io::{self, BufRead},
    thread,
};

use tokio::sync::mpsc;

/// Lines the thread may read ahead.
const LINES_AHEAD: usize = 16;

/// The lines of standard input.
pub(crate) struct Lines(mpsc::Receiver<io::Result<String>>);

impl Lines {
    /// Starts reading.
    pub(crate) fn read() -> Lines {
        let (sender, receiver) = mpsc::channel(LINES_AHEAD);
        thread::spawn(move || {
            let mut input = io::stdin().lock();
            loop {
                let mut line = Vec::new();
                let read = match input.read_until(b'\n', &mut line) {
                    Ok(_) if line.last() != Some(&b'\n') => return,
                    Ok(_) => Ok(String::from_utf8_lossy(&line[..line.len() - 1]).into_owned()),
                    Err(error) => Err(error),
                };
                let failed = read.is_err();
                if sender.blocking_send(read).is_err() || failed {
                    return;
                }
            }
        });
        Lines(receiver)
    }

    /// The next line, without its newline; `None` at the end. A last line without newline is not one.
    pub(crate) async fn next(&mut self) -> io::Result<Option<String>> {
        self.0.recv().await.transpose()
    }
}
