//! JSON objects one after the other, out of a body that comes in pieces.

use bytes::{Buf, Bytes, BytesMut};

/// Something else than an object where one should begin.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid character {0:?} looking for the beginning of an object")]
pub struct NotAnObject(char);

/// Cuts a body into objects. Each byte is looked at once; whether an object is good JSON is for its reader to say.
#[derive(Debug, Default)]
pub struct Values {
    pending: BytesMut,
    /// Bytes of `pending` that were looked at.
    scanned: usize,
    depth: usize,
    place: Place,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Structure,
    Text,
    /// After a backslash in a text.
    Escape,
}

impl Values {
    /// Takes the next piece of the body.
    pub fn push(&mut self, piece: &[u8]) {
        self.pending.extend_from_slice(piece);
    }

    /// Bytes that are not yet part of a whole object.
    pub fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    /// The next whole object, if it has come.
    pub fn next_object(&mut self) -> Result<Option<Bytes>, NotAnObject> {
        if self.depth == 0 {
            let blank = self
                .pending
                .iter()
                .take_while(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n'))
                .count();
            self.pending.advance(blank);
            self.scanned = 0;
            match self.pending.first() {
                None => return Ok(None),
                Some(b'{') => {}
                Some(other) => return Err(NotAnObject(char::from(*other))),
            }
        }
        while let Some(byte) = self.pending.get(self.scanned) {
            self.scanned += 1;
            self.place = match (self.place, byte) {
                (Place::Structure, b'{' | b'[') => {
                    self.depth += 1;
                    Place::Structure
                }
                (Place::Structure, b'}' | b']') => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        let object = self.pending.split_to(self.scanned).freeze();
                        self.scanned = 0;
                        return Ok(Some(object));
                    }
                    Place::Structure
                }
                (Place::Structure, b'"') => Place::Text,
                (Place::Structure, _) => Place::Structure,
                (Place::Text, b'\\') => Place::Escape,
                (Place::Text, b'"') => Place::Structure,
                (Place::Text | Place::Escape, _) => Place::Text,
            };
        }
        Ok(None)
    }
}
