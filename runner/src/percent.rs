//! Percent-encoding, taken off. Pure.

/// Each `%xy` as the byte that it stands for. What is none stays as it is.
#[must_use]
pub fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let byte = match rest {
            [b'%', high, low, ..] => hex_digit(*high).zip(hex_digit(*low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        decoded.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { rest.get(3..).unwrap_or_default() } else { after };
    }
    decoded
}

#[must_use]
pub fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_for_no_byte_stays_as_it_is() {
        assert_eq!(percent_decoded(b"a%20b%2F%2fc"), b"a b//c");
        assert_eq!(percent_decoded(b"100%25 %2 %zz %"), b"100% %2 %zz %");
    }
}
