//! The checksum that every stored value carries, whatever the engine.
//!
//! Neither redb nor sled can be trusted to notice a flipped bit in a value, so each value is stored as
//! `value || crc32(key || value)` (little endian, IEEE polynomial), and every read from an engine goes through [`open`].
//! The key is part of the sum so that a value which the engine returns under another key is damage too.

/// Bytes that [`seal`] adds to a value.
pub(crate) const CHECKSUM_BYTES: usize = 4;

/// Replaces the content of `out` with `value` followed by its checksum under `key`.
pub(crate) fn seal(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.reserve(value.len() + CHECKSUM_BYTES);
    out.extend_from_slice(value);
    out.extend_from_slice(&sum(key, value).to_le_bytes());
}

/// The value inside `stored`, or `None` if it is not what [`seal`] wrote under `key`.
pub(crate) fn open<'a>(key: &[u8], stored: &'a [u8]) -> Option<&'a [u8]> {
    let (value, stored_sum) = stored.split_last_chunk::<CHECKSUM_BYTES>()?;
    (u32::from_le_bytes(*stored_sum) == sum(key, value)).then_some(value)
}

fn sum(key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_value_opens_under_its_key_only() {
        let mut stored = Vec::new();
        seal(b"key", b"value", &mut stored);
        assert_eq!(open(b"key", &stored), Some(&b"value"[..]));
        assert_eq!(open(b"kez", &stored), None);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut stored = Vec::new();
        seal(b"key", b"some value", &mut stored);
        for bit in 0..stored.len() * 8 {
            let mut damaged = stored.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(b"key", &damaged), None, "bit {bit}");
        }
    }

    #[test]
    fn value_shorter_than_a_checksum_is_damage() {
        assert_eq!(open(b"key", b"abc"), None);
    }

    /// The stored form is a format: this sum may never change.
    #[test]
    fn stored_form_is_fixed() {
        let mut stored = Vec::new();
        seal(b"k", b"v", &mut stored);
        assert_eq!(stored, [b'v', 0x9a, 0x74, 0xb6, 0x7e]);
    }
}
