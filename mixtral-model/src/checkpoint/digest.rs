//! What tells one checkpoint from another without reading all of it.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::Checkpoint;
use crate::{Error, Result};

/// Bytes of a tensor's beginning, and of its end, that count.
const SAMPLE: usize = 1 << 12;

/// A SHA-256: of a checkpoint, that of what it says of its tensors and of samples of them ([`Checkpoint::digest`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Checkpoint {
    /// Of every tensor, in the order of names: name, element type, shape, and its first and last 4,096 bytes.
    ///
    /// It takes about 8 MB of reading for the 995 tensors of Mixtral 8x7B. Two checkpoints that differ elsewhere in a tensor have the same
    /// one; fine-tuning, merging and quantising leave no tensor's ends as they were. The same model in another layout or type has
    /// another.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn digest(&self) -> Result<Digest> {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        let mut tensors: Vec<_> = self.tensors.iter().collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        for tensor in tensors {
            part(tensor.name.as_bytes());
            part(tensor.stored.to_string().as_bytes());
            part(format!("{:?}", tensor.shape).as_bytes());
            let file = &self.files[tensor.file];
            let (begin, end) = (tensor.begin, tensor.end);
            part(&file.bytes(begin, end.min(begin + SAMPLE))?);
            part(&file.bytes(begin.max(end.saturating_sub(SAMPLE)), end)?);
        }
        Ok(hash.into())
    }
}

impl Digest {
    /// Of some bytes.
    pub(crate) fn of(bytes: impl AsRef<[u8]>) -> Self {
        Sha256::new_with_prefix(bytes).into()
    }
}

impl From<Sha256> for Digest {
    fn from(hash: Sha256) -> Self {
        Self(hash.finalize().into())
    }
}

/// As 64 hexadecimal digits.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digit = |at: usize| (text.as_bytes()[at] as char).to_digit(16);
        let byte = |n: usize| Some((digit(2 * n)? << 4 | digit(2 * n + 1)?) as u8);
        let mut bytes = [0; 32];
        let whole = text.len() == 64
            && bytes.iter_mut().enumerate().all(|(n, to)| byte(n).map(|byte| *to = byte).is_some());
        if whole {
            return Ok(Self(bytes));
        }
        let found = text.chars().take(80).flat_map(char::escape_debug).collect();
        Err(Error::Setting { setting: "digest", expected: "64 hexadecimal digits".to_owned(), found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_text_and_back() {
        let digest = Digest(std::array::from_fn(|n| (7 * n + 250) as u8));
        let text = digest.to_string();
        assert_eq!(&text[..6], "fa0108");
        assert_eq!(text.parse::<Digest>().unwrap(), digest);
        assert_eq!(text.to_uppercase().parse::<Digest>().unwrap(), digest);
        for wrong in ["", &text[1..], &format!("{text}0"), &text.replace('f', "g"), &"é".repeat(32)] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }
}
