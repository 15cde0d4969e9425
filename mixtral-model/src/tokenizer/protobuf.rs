//! The protobuf wire format, as far as a sentencepiece model needs it.
//!
//! A message is read as a sequence of numbered fields that borrow from the input.
//! Every length is checked against the bytes that are there, so nothing is allocated and nothing is read twice.

use super::Reason;

/// The fields of one message, in file order. After an error the iteration ends.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

/// A field's value by its wire type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    /// An integer, a boolean or an enumeration.
    Varint(u64),
    /// Eight bytes, little-endian.
    Fixed64(u64),
    /// Four bytes, little-endian.
    Fixed32(u32),
    /// A string, a byte string or a message.
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    /// Reads `message` from its first byte.
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn field(&mut self) -> Reason<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(len)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            other => return Err(format!("protobuf: expected wire type 0, 1, 2 or 5, found {other}")),
        };
        match key >> 3 {
            0 => Err("protobuf: expected a field number above 0, found 0".to_owned()),
            number => Ok((number, value)),
        }
    }

    /// At most ten bytes of seven bits each, least significant first.
    fn varint(&mut self) -> Reason<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("protobuf: expected a varint of at most 10 bytes, found more".to_owned())
    }

    fn array<const N: usize>(&mut self) -> Reason<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk().ok_or_else(|| self.cut_short(N as u64))?;
        self.rest = rest;
        Ok(*head)
    }

    fn take(&mut self, len: u64) -> Reason<&'a [u8]> {
        let split = usize::try_from(len).ok().and_then(|len| self.rest.split_at_checked(len));
        let (head, rest) = split.ok_or_else(|| self.cut_short(len))?;
        self.rest = rest;
        Ok(head)
    }

    fn cut_short(&self, expected: u64) -> String {
        format!("protobuf: expected {expected} more bytes, found {}", self.rest.len())
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Reason<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

impl<'a> Value<'a> {
    /// The bytes of a string, a byte string or a message.
    pub(super) fn bytes(self) -> Reason<&'a [u8]> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            other => Err(format!("protobuf: expected bytes, found {other:?}")),
        }
    }

    /// A string, which is UTF-8.
    pub(super) fn text(self) -> Reason<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|error| format!("protobuf: expected UTF-8, found {error}"))
    }

    /// An integer or an enumeration.
    pub(super) fn integer(self) -> Reason<u64> {
        match self {
            Value::Varint(value) => Ok(value),
            other => Err(format!("protobuf: expected an integer, found {other:?}")),
        }
    }

    /// A boolean: any integer but 0 is true.
    pub(super) fn boolean(self) -> Reason<bool> {
        Ok(self.integer()? != 0)
    }

    /// A number of single precision.
    pub(super) fn float(self) -> Reason<f32> {
        match self {
            Value::Fixed32(bits) => Ok(f32::from_bits(bits)),
            other => Err(format!("protobuf: expected a float, found {other:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: &[u8]) -> Reason<Vec<(u64, Value<'_>)>> {
        Fields::new(message).collect()
    }

    #[test]
    fn every_wire_type() {
        let message = [
            0x08, 0x96, 0x01, // 1: 150
            0x12, 0x02, b'h', b'i', // 2: "hi"
            0x1d, 0, 0, 0x80, 0x3f, // 3: 1.0
            0x21, 7, 0, 0, 0, 0, 0, 0, 0, // 4: 7
        ];
        let fields = read(&message).unwrap();
        assert_eq!(fields[0], (1, Value::Varint(150)));
        assert_eq!(fields[1].1.text().unwrap(), "hi");
        assert_eq!(fields[2].1.float().unwrap(), 1.0);
        assert_eq!(fields[3], (4, Value::Fixed64(7)));
    }

    #[test]
    fn damage_is_an_error() {
        for message in [
            &[0x08][..],                              // a key without value
            &[0x12, 0x05, b'h', b'i'],                // fewer bytes than announced
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f, 0], // four gigabytes announced
            &[0x0b, 0],                               // a group
            &[0x00, 0],                               // field number 0
            &[0xff; 11],                              // a varint without end
            &[0x1d, 0, 0],                            // half a float
        ] {
            assert!(read(message).is_err(), "{message:x?}");
        }
    }
}
