//! Writing a GGUF file: version 3, little-endian.

use std::io::{self, Write};

use moe_kernels::{Dtype, WeightFormat};

use super::{DEFAULT_ALIGNMENT, MAGIC};

const VERSION: u32 = 3;

/// A value with the type that it is written as. Readers look at types, so a size is a u32 and nothing else.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Field {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
    U32s(Vec<u32>),
    /// Type and value as another file has them.
    Raw(Vec<u8>),
}

/// A tensor to be listed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Listed {
    pub(crate) name: String,
    /// With the innermost dimension last, as everywhere here; rows are whole blocks of the format.
    pub(crate) shape: Vec<usize>,
    pub(crate) format: WeightFormat,
    pub(crate) bytes: u64,
}

/// Writes what stands before the tensors' bytes. These follow in the order of the list, each [padded](padding).
pub(crate) fn header(out: &mut impl Write, fields: &[(String, Field)], tensors: &[Listed]) -> io::Result<()> {
    let mut head = Counted { out, bytes: 0 };
    head.write_all(MAGIC)?;
    head.write_all(&VERSION.to_le_bytes())?;
    head.write_all(&(tensors.len() as u64).to_le_bytes())?;
    head.write_all(&(fields.len() as u64).to_le_bytes())?;
    for (key, field) in fields {
        string(&mut head, key)?;
        field.write(&mut head)?;
    }
    let mut offset = 0u64;
    for Listed { name, shape, format, bytes } in tensors {
        string(&mut head, name)?;
        head.write_all(&(shape.len() as u32).to_le_bytes())?;
        for &size in shape.iter().rev() {
            head.write_all(&(size as u64).to_le_bytes())?;
        }
        head.write_all(&ggml_type(*format).to_le_bytes())?;
        head.write_all(&offset.to_le_bytes())?;
        offset += bytes + padding(*bytes) as u64;
    }
    let zeros = [0; DEFAULT_ALIGNMENT];
    let missing = padding(head.bytes);
    head.write_all(&zeros[..missing])
}

/// Counts what is written: a header may be long, and is not kept.
struct Counted<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The zeros that follow so many bytes.
pub(crate) fn padding(bytes: u64) -> usize {
    let alignment = DEFAULT_ALIGNMENT as u64;
    (bytes.next_multiple_of(alignment) - bytes) as usize
}

/// The number that ggml has for a format.
fn ggml_type(format: WeightFormat) -> u32 {
    match format {
        WeightFormat::Plain(Dtype::F16) => 1,
        WeightFormat::Plain(Dtype::Bf16) => 30,
        WeightFormat::Blocks(block) => block.ggml_type(),
        _ => 0,
    }
}

impl Field {
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::U32(value) => number(out, 4, value.to_le_bytes()),
            Self::F32(value) => number(out, 6, value.to_le_bytes()),
            Self::Bool(value) => number(out, 7, [u8::from(*value)]),
            Self::Text(text) => {
                out.write_all(&8u32.to_le_bytes())?;
                string(out, text)
            }
            Self::Texts(texts) => {
                array(out, 8, texts.len())?;
                texts.iter().try_for_each(|text| string(out, text))
            }
            Self::F32s(values) => {
                array(out, 6, values.len())?;
                values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
            }
            Self::I32s(values) => {
                array(out, 5, values.len())?;
                values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
            }
            Self::U32s(values) => {
                array(out, 4, values.len())?;
                values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
            }
            Self::Raw(bytes) => out.write_all(bytes),
        }
    }
}

fn number<const N: usize>(out: &mut impl Write, kind: u32, bytes: [u8; N]) -> io::Result<()> {
    out.write_all(&kind.to_le_bytes())?;
    out.write_all(&bytes)
}

/// What stands before the items of an array of so many.
fn array(out: &mut impl Write, of: u32, len: usize) -> io::Result<()> {
    number(out, 9, of.to_le_bytes())?;
    out.write_all(&(len as u64).to_le_bytes())
}

fn string(out: &mut impl Write, text: &str) -> io::Result<()> {
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use moe_kernels::BlockType;

    use super::*;
    use crate::gguf::{Header, Value};

    #[test]
    fn what_is_written_is_read() {
        let fields = [
            ("general.architecture", Field::Text("llama".into())),
            ("a.size", Field::U32(7)),
            ("a.number", Field::F32(0.5)),
            ("a.flag", Field::Bool(true)),
            ("a.texts", Field::Texts(vec!["▁a".into(), String::new()])),
            ("a.numbers", Field::F32s(vec![-1.0, 2.0])),
            ("a.types", Field::I32s(vec![3, -4])),
            ("a.raw", Field::Raw([&10u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat())),
        ];
        let fields = fields.map(|(key, field)| (key.to_owned(), field));
        let listed = |name: &str, shape: &[usize], format: WeightFormat, bytes| Listed {
            name: name.to_owned(),
            shape: shape.to_vec(),
            format,
            bytes,
        };
        let tensors = [
            listed("norm", &[3], Dtype::F32.into(), 12),
            listed("exps", &[2, 5, 256], BlockType::Q4K.into(), 1440),
            listed("m", &[2, 4], Dtype::Bf16.into(), 16),
            listed("n", &[2, 4], Dtype::F16.into(), 16),
        ];
        let mut file = Vec::new();
        header(&mut file, &fields, &tensors).unwrap();
        assert_eq!(file.len() % 32, 0);
        let (begin, lengths) = (file.len() as u64, [12, 1440, 16, 16].map(|n| n + padding(n) as u64));
        assert_eq!(lengths, [32, 1440, 32, 32]);
        file.resize(file.len() + 32 + 1440 + 32 + 32, 0);
        let read = Header::read(&file[..], file.len() as u64, Path::new("m.gguf")).unwrap();
        assert_eq!((read.version, read.data), (3, begin));
        for (entry, tensor) in read.entries.iter().zip(&tensors) {
            assert_eq!((&entry.name, &entry.shape), (&tensor.name, &tensor.shape));
            assert_eq!(entry.stored.format(), Some(tensor.format));
            assert_eq!((entry.end - entry.begin) as u64, tensor.bytes);
        }
        let value = |key: &str| read.metadata.get(key).unwrap().clone();
        assert_eq!(value("a.size"), Value::Unsigned(7));
        assert_eq!(value("a.number"), Value::Float(0.5));
        assert_eq!(value("a.flag"), Value::Bool(true));
        assert_eq!(value("a.texts"), Value::List(vec![Value::Text("▁a".into()), Value::Text(String::new())]));
        assert_eq!(value("a.numbers"), Value::List(vec![Value::Float(-1.0), Value::Float(2.0)]));
        assert_eq!(value("a.types"), Value::List(vec![Value::Signed(3), Value::Signed(-4)]));
        assert_eq!(value("a.raw"), Value::Unsigned(u64::MAX));
    }
}
