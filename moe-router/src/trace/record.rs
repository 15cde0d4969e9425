//! One record as bytes.

use super::TraceError;

/// Bytes of a record.
pub(super) const BYTES: usize = 32;
/// Records between two checks, at most.
pub(super) const CHECKED: usize = 1024;
/// The id of a token of which nobody said one.
pub(super) const NO_ID: u32 = u32::MAX;
/// The expert of a token without a pair.
pub(super) const NO_EXPERT: u16 = u16::MAX;

/// How a token was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Among several of its sequence in one pass: the reading of a prompt.
    #[default]
    Prefill,
    /// As the only one of its sequence.
    Decode,
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Kept = 0,
    Refused = 1,
    /// A token of which no pair was asked for.
    Nothing = 2,
    Check = 3,
}

/// A token and an expert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// The expert.
    pub expert: u16,
    /// The expert that was asked for: another one where the pair was rerouted.
    pub requested: u16,
    /// How many choices of the token came before.
    pub rank: u16,
    /// Combination weight; 0 where the pair was refused, or the trace has none.
    pub weight: f32,
}

/// One record. Checks use the fields in their own way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Record {
    pub(super) step: u32,
    pub(super) sequence: u32,
    pub(super) position: u32,
    pub(super) token: u32,
    pub(super) layer: u16,
    pub(super) pair: Pair,
    pub(super) kind: Kind,
    pub(super) phase: Phase,
    /// Whether it is the first of its token.
    pub(super) first: bool,
}

impl Record {
    pub(super) fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let words = [self.step, self.sequence, self.position, self.token, self.pair.weight.to_bits()];
        let halves = [self.layer, self.pair.expert, self.pair.requested, self.pair.rank];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        for (to, half) in bytes[20..28].chunks_exact_mut(2).zip(halves) {
            to.copy_from_slice(&half.to_le_bytes());
        }
        (bytes[28], bytes[29], bytes[30]) = (self.kind as u8, self.phase as u8, u8::from(self.first));
        bytes
    }

    /// The record that lies at `offset` in a file.
    pub(super) fn from_bytes(bytes: &[u8; BYTES], offset: u64) -> Result<Self, TraceError> {
        let word = |n: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[4 * n + i]));
        let half = |n: usize| u16::from_le_bytes(std::array::from_fn(|i| bytes[20 + 2 * n + i]));
        let kind = match bytes[28] {
            0 => Kind::Kept,
            1 => Kind::Refused,
            2 => Kind::Nothing,
            3 => Kind::Check,
            other => return Err(TraceError::damaged(offset + 28, "a kind, 0 to 3", other)),
        };
        let phase = match bytes[29] {
            0 => Phase::Prefill,
            1 => Phase::Decode,
            other => return Err(TraceError::damaged(offset + 29, "a phase, 0 or 1", other)),
        };
        if bytes[30] > 1 || bytes[31] != 0 {
            return Err(TraceError::damaged(offset + 30, "0 or 1, then 0", format!("{:?}", &bytes[30..])));
        }
        let weight = f32::from_bits(word(4));
        let pair = Pair { expert: half(1), requested: half(2), rank: half(3), weight };
        let (step, sequence, position, token) = (word(0), word(1), word(2), word(3));
        let first = bytes[30] == 1;
        Ok(Self { step, sequence, position, token, layer: half(0), pair, kind, phase, first })
    }

    /// A check of so many records with this sum, after `total` of them.
    pub(super) fn check(records: u32, sum: u32, total: u64, is_last: bool) -> Self {
        Self {
            step: records,
            sequence: sum,
            position: total as u32,
            token: (total >> 32) as u32,
            layer: 0,
            pair: Pair { expert: 0, requested: 0, rank: u16::from(is_last), weight: 0.0 },
            kind: Kind::Check,
            phase: Phase::Prefill,
            first: false,
        }
    }
}
