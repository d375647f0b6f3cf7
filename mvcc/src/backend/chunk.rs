//! Values above an engine's largest one, kept in pieces under keys of their own.
//!
//! ```text
//! whole      key                    ->  sealed value, 0
//! chunked    key                    ->  length of the sealed value (8 bytes, little endian), 1
//!            'K' key number(4, BE)  ->  piece of the sealed value, every piece but the last CHUNK_BYTES long
//! ```
//! The one checksum of the sealed value covers all pieces: a missing or foreign piece is found like a flipped bit.
//! `key` is the engine's, that is with its keyspace in front.

/// Longest stored value, and the length of all pieces but the last.
pub(crate) const CHUNK_BYTES: usize = 16 << 10;

/// First byte of the key of each piece; no keyspace has it.
pub(crate) const PREFIX: u8 = b'K';

const WHOLE: u8 = 0;
const CHUNKED: u8 = 1;

/// What is stored under a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stored<'a> {
    /// The sealed value itself.
    Whole(&'a [u8]),
    /// A sealed value of this length, in pieces.
    Chunked(usize),
}

impl<'a> Stored<'a> {
    /// Reads what is stored under a key; `None` is damage.
    pub(crate) fn parse(stored: &'a [u8]) -> Option<Stored<'a>> {
        match stored.split_last()? {
            (&WHOLE, sealed) => Some(Stored::Whole(sealed)),
            (&CHUNKED, len) => {
                let len = usize::try_from(u64::from_le_bytes(len.try_into().ok()?)).ok()?;
                (needs_chunks(len)).then_some(Stored::Chunked(len))
            }
            _ => None,
        }
    }
}

/// Whether a sealed value of `len` bytes has to be chunked.
pub(crate) fn needs_chunks(len: usize) -> bool {
    len >= CHUNK_BYTES
}

/// What is stored under the key itself: the whole value, or its length.
pub(crate) fn head(sealed: &[u8]) -> Vec<u8> {
    if needs_chunks(sealed.len()) {
        let mut head = (sealed.len() as u64).to_le_bytes().to_vec();
        head.push(CHUNKED);
        head
    } else {
        let mut whole = Vec::with_capacity(sealed.len() + 1);
        whole.extend_from_slice(sealed);
        whole.push(WHOLE);
        whole
    }
}

/// The pieces of a value that has to be chunked, with their keys; nothing for another.
pub(crate) fn pieces<'a>(
    key: &'a [u8],
    sealed: &'a [u8],
) -> impl Iterator<Item = (Vec<u8>, &'a [u8])> {
    let chunked = if needs_chunks(sealed.len()) {
        sealed
    } else {
        &[]
    };
    keys(key, chunked.len()).zip(chunked.chunks(CHUNK_BYTES))
}

/// The keys of the pieces of a chunked value of `len` bytes.
pub(crate) fn keys(key: &[u8], len: usize) -> impl Iterator<Item = Vec<u8>> {
    (0..len.div_ceil(CHUNK_BYTES)).map(move |number| {
        let number = u32::try_from(number).expect("a value is far below 2^32 chunks");
        let mut chunk_key = Vec::with_capacity(key.len() + 5);
        chunk_key.push(PREFIX);
        chunk_key.extend_from_slice(key);
        chunk_key.extend_from_slice(&number.to_be_bytes());
        chunk_key
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_comes_back_from_its_pieces() {
        for len in [
            0,
            1,
            CHUNK_BYTES - 1,
            CHUNK_BYTES,
            CHUNK_BYTES + 1,
            3 * CHUNK_BYTES,
        ] {
            let sealed: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let head = head(&sealed);
            assert!(head.len() <= CHUNK_BYTES);
            let pieces: Vec<_> = pieces(b"rkey", &sealed).collect();
            assert!(pieces.iter().all(|(_, piece)| piece.len() <= CHUNK_BYTES));
            match Stored::parse(&head).unwrap() {
                Stored::Whole(whole) => assert_eq!((whole, pieces.len()), (&sealed[..], 0)),
                Stored::Chunked(stored_len) => {
                    assert_eq!(stored_len, len);
                    assert!(keys(b"rkey", len).eq(pieces.iter().map(|(key, _)| key.clone())));
                    let joined: Vec<u8> = pieces
                        .iter()
                        .flat_map(|(_, piece)| piece.to_vec())
                        .collect();
                    assert_eq!(joined, sealed);
                }
            }
        }
    }

    #[test]
    fn unknown_forms_are_damage() {
        for stored in [&b""[..], b"\x02", b"abc\x01", b"\0\0\0\0\0\0\0\0\x01"] {
            assert_eq!(Stored::parse(stored), None, "{stored:?}");
        }
    }
}
