//! Go's double-quoted form of byte strings, and the words of a command line in standard input.
//!
//! `%q` of etcdctl's fields output and the strings of `txn` input follow Go's literal syntax: bytes that
//! are not printable UTF-8 become escapes, and reading accepts exactly those escapes.

use std::fmt::Write;

/// Quotes bytes: printable UTF-8 stays, everything else is escaped.
pub(crate) fn quote(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 2);
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|c| quote_char(&mut out, c));
        chunk
            .invalid()
            .iter()
            .for_each(|b| push_hex(&mut out, u32::from(*b)));
    }
    out.push('"');
    out
}

fn quote_char(out: &mut String, c: char) {
    let code = u32::from(c);
    match c {
        '"' | '\\' => out.extend(['\\', c]),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0b' => out.push_str("\\v"),
        c if is_printable(c) => out.push(c),
        _ if code < 0x80 => push_hex(out, code),
        _ => {
            let width = if code < 0x10000 { 4 } else { 8 };
            let letter = if width == 4 { 'u' } else { 'U' };
            // Writing to a string cannot fail.
            let _ = write!(out, "\\{letter}{code:0width$x}");
        }
    }
}

fn push_hex(out: &mut String, byte: u32) {
    // Writing to a string cannot fail.
    let _ = write!(out, "\\x{byte:02x}");
}

/// Letters, marks, numbers, punctuation, symbols and the ASCII space: Go's `IsPrint`. Rust's debug escape
/// draws the same line, except that it escapes a combining mark at the start of a string.
fn is_printable(c: char) -> bool {
    matches!(c, '\'') || ['a', c].iter().collect::<String>().escape_debug().count() == 2
}

/// Reads one quoted string at the start of `text`: `"..."` with escapes or `` `...` `` without.
/// Answers the string and what follows it, or `None` if there is none or it is malformed.
pub(crate) fn unquote_prefix(text: &str) -> Option<(Vec<u8>, &str)> {
    if let Some(raw) = text.strip_prefix('`') {
        let (inner, rest) = raw.split_once('`')?;
        return Some((inner.replace('\r', "").into_bytes(), rest));
    }
    let mut rest = text.strip_prefix('"')?;
    let mut out = Vec::new();
    loop {
        let c = rest.chars().next()?;
        let after = &rest[c.len_utf8()..];
        match c {
            '"' => return Some((out, after)),
            '\n' => return None,
            '\\' => rest = unescape(after, &mut out)?,
            c => {
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = after;
            }
        }
    }
}

/// Reads what follows a backslash.
fn unescape<'a>(text: &'a str, out: &mut Vec<u8>) -> Option<&'a str> {
    let c = text.chars().next()?;
    let rest = &text[c.len_utf8()..];
    let simple = match c {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' | '"' => c as u8,
        'x' => return byte(rest, 2, 16, out),
        '0'..='7' => return byte(text, 3, 8, out),
        'u' => return rune(rest, 4, out),
        'U' => return rune(rest, 8, out),
        _ => return None,
    };
    out.push(simple);
    Some(rest)
}

fn digits(text: &str, count: usize, radix: u32) -> Option<(u32, &str)> {
    let (digits, rest) = text.split_at_checked(count)?;
    let all_digits = digits.chars().all(|c| c.is_digit(radix));
    let value = u32::from_str_radix(digits, radix).ok()?;
    all_digits.then_some((value, rest))
}

fn byte<'a>(text: &'a str, count: usize, radix: u32, out: &mut Vec<u8>) -> Option<&'a str> {
    let (value, rest) = digits(text, count, radix)?;
    out.push(u8::try_from(value).ok()?);
    Some(rest)
}

fn rune<'a>(text: &'a str, count: usize, out: &mut Vec<u8>) -> Option<&'a str> {
    let (value, rest) = digits(text, count, 16)?;
    out.extend_from_slice(char::from_u32(value)?.encode_utf8(&mut [0; 4]).as_bytes());
    Some(rest)
}

/// Splits a line of standard input into words: `"with escapes"`, `'as it is'`, or bare.
///
/// A quote that is never closed is left out, as etcdctl does. Errors: `"..."` with a bad escape.
pub(crate) fn words(line: &str) -> Result<Vec<Vec<u8>>, String> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        match c {
            '"' => match closing_quote(after) {
                Some(end) => {
                    let literal = &rest[..end + 2];
                    let (word, _) = unquote_prefix(literal)
                        .ok_or_else(|| format!("invalid syntax in {literal}"))?;
                    found.push(word);
                    rest = &after[end + 1..];
                }
                None => rest = after,
            },
            '\'' => match after.split_once('\'') {
                Some((word, tail)) => {
                    found.push(word.as_bytes().to_vec());
                    rest = tail;
                }
                None => rest = after,
            },
            c if is_space(c) => rest = after,
            _ => {
                let end = rest.find(is_space).unwrap_or(rest.len());
                found.push(rest.as_bytes()[..end].to_vec());
                rest = &rest[end..];
            }
        }
    }
    Ok(found)
}

/// The position of the quote that ends a double-quoted string, escapes respected.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at),
            _ => {}
        }
    }
    None
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0c')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_are_quoted_as_go_does() {
        for (bytes, expect) in [
            (&b"foo"[..], r#""foo""#),
            (b"a\"b\\c", r#""a\"b\\c""#),
            (
                b"\x07\x08\x0c\n\r\t\x0b\0\x1f\x7f",
                r#""\a\b\f\n\r\t\v\x00\x1f\x7f""#,
            ),
            (b"\x92p3\xfcK\xa8\\}", r#""\x92p3\xfcK\xa8\\}""#),
            (
                "é'\u{301}\u{a0}\u{200b}\u{e000}\u{1f600}\u{e0001}".as_bytes(),
                "\"é'\u{301}\\u00a0\\u200b\\ue000\u{1f600}\\U000e0001\"",
            ),
            ("\u{fffd}".as_bytes(), "\"\u{fffd}\""),
        ] {
            assert_eq!(quote(bytes), expect);
        }
    }

    #[test]
    fn reading_accepts_go_literals_only() {
        let read = |text| unquote_prefix(text).map(|(bytes, rest)| (bytes, rest.to_owned()));
        assert_eq!(
            read(r#""a\101\x2d\u00e9" x"#),
            Some(("aA-é".into(), " x".into()))
        );
        assert_eq!(read("`raw\\n`)"), Some((b"raw\\n".to_vec(), ")".into())));
        assert_eq!(read(r#""\xff""#), Some((vec![0xff], String::new())));
        for bad in [
            r#""\q""#,
            r#""\x2""#,
            r#""\400""#,
            r#""\'""#,
            r#""open"#,
            "bare",
            r#""\ud800""#,
            "",
            "\"\\x+1\"",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn words_are_bare_or_quoted() {
        let split = |line| {
            words(line).map(|w| {
                w.into_iter()
                    .map(|w| String::from_utf8(w).unwrap())
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(
            split(r#"put "x y" 'z "z' k=v"#).unwrap(),
            ["put", "x y", "z \"z", "k=v"]
        );
        assert_eq!(split(r#"put x"y z"#).unwrap(), ["put", "x\"y", "z"]);
        assert_eq!(split(r#"put "x y"#).unwrap(), ["put", "x", "y"]);
        assert_eq!(split(r#"put z ''"#).unwrap(), ["put", "z", ""]);
        assert!(split(r#"put "x\q" y"#).is_err());
        assert!(split("  ").unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn what_is_quoted_reads_back(bytes in proptest::collection::vec(any::<u8>(), 0..40), tail in "[a-z) ]{0,5}") {
            let quoted = quote(&bytes);
            let literal = format!("{quoted}{tail}");
            prop_assert_eq!(unquote_prefix(&literal), Some((bytes.clone(), tail.as_str())));
            prop_assert_eq!(words(&quoted), Ok(vec![bytes]));
        }

        #[test]
        fn any_line_can_be_split(line in "\\PC{0,40}") {
            let _ = words(&line);
            let _ = unquote_prefix(&line);
        }
    }
}
