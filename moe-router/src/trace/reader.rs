//! Reading.

use std::io::{BufRead, BufReader, Read};

use moe_core::memory;

use super::record::{BYTES, CHECKED, Kind, NO_EXPERT, NO_ID, Record};
use super::{Pair, Phase, TraceError, TraceHeader, TraceWeights};

/// What a layer's router did with a token.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct TokenRoute {
    /// The forward pass, from 0.
    pub step: u32,
    /// The layer, from 0.
    pub layer: u16,
    /// Identity of the sequence.
    pub sequence: u32,
    /// Position in the sequence, from 0.
    pub position: u32,
    /// The token's id, if it is known.
    pub token: Option<u32>,
    /// How it was read.
    pub phase: Phase,
    /// The pairs that were kept, best first.
    pub kept: Vec<Pair>,
    /// Those that were refused, best first.
    pub refused: Vec<Pair>,
    /// Where in the file its records begin.
    pub offset: u64,
}

impl TokenRoute {
    /// The experts that worked on the token, best first.
    pub fn experts(&self) -> impl Iterator<Item = usize> + Clone {
        self.kept.iter().map(|pair| usize::from(pair.expert))
    }

    /// What the token asked for, best first: kept and refused pairs by rank, each with whether it was kept.
    pub fn by_rank(&self) -> impl Iterator<Item = (&Pair, bool)> {
        let (mut kept, mut refused) = (self.kept.iter().peekable(), self.refused.iter().peekable());
        std::iter::from_fn(move || {
            let is_kept = match (kept.peek(), refused.peek()) {
                (Some(one), Some(other)) => one.rank <= other.rank,
                (one, _) => one.is_some(),
            };
            let next = if is_kept { kept.next() } else { refused.next() };
            next.map(|pair| (pair, is_kept))
        })
    }
}

/// Reads a trace, token by token and layer by layer, in constant memory. Nothing is given of a stretch of 1,024 records whose sum is not right.
#[derive(Debug)]
pub struct TraceReader<R> {
    source: BufReader<R>,
    header: TraceHeader,
    /// A stretch of records, with its check.
    bytes: Vec<u8>,
    /// Of what the next check is of, besides its stretch: the header.
    sum: crc32fast::Hasher,
    /// Where in the file the stretch begins.
    offset: u64,
    /// The next record in the stretch.
    at: usize,
    /// Records before the stretch.
    total: u64,
    ended: bool,
    /// Whether something was not as it should be: then there is no more.
    failed: bool,
    /// Pass and layer of the last record.
    place: Option<(u32, u16)>,
}

impl<R: Read> TraceReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// [`TraceError::Io`]; [`TraceError::Damaged`] where it is no trace.
    pub fn new(source: R) -> Result<Self, TraceError> {
        let mut source = BufReader::new(source);
        let (header, bytes) = TraceHeader::read(&mut source)?;
        let mut sum = crc32fast::Hasher::new();
        sum.update(&bytes);
        Ok(Self {
            source,
            header,
            offset: bytes.len() as u64,
            bytes: Vec::new(),
            sum,
            at: 0,
            total: 0,
            ended: false,
            failed: false,
            place: None,
        })
    }

    /// What the trace says of itself.
    pub fn header(&self) -> &TraceHeader {
        &self.header
    }

    /// Reads what became of the next token in a layer; `false` at the end.
    ///
    /// # Errors
    ///
    /// [`TraceError::Io`]; [`TraceError::Damaged`] where the trace was changed or cut off; [`TraceError::OutOfMemory`].
    pub fn next(&mut self, route: &mut TokenRoute) -> Result<bool, TraceError> {
        if self.failed {
            return Err(TraceError::damaged(
                self.offset,
                "a sound trace",
                "a damaged one, as was said before",
            ));
        }
        let read = self.read(route);
        self.failed = read.is_err();
        read
    }

    fn read(&mut self, route: &mut TokenRoute) -> Result<bool, TraceError> {
        let Some((first, offset)) = self.peek()? else { return Ok(false) };
        if !first.first {
            return Err(TraceError::damaged(offset, "the first record of a token", "a later one"));
        }
        route.kept.clear();
        route.refused.clear();
        let Record { step, layer, sequence, position, token, phase, .. } = first;
        (route.step, route.layer, route.sequence, route.position) = (step, layer, sequence, position);
        (route.token, route.phase, route.offset) = (Some(token).filter(|&id| id != NO_ID), phase, offset);
        let place =
            |record: &Record| (record.step, record.layer, record.sequence, record.position, record.token);
        while let Some((record, offset)) = self.peek()? {
            if record.first && offset != route.offset {
                break;
            }
            if place(&record) != place(&first) {
                return Err(TraceError::damaged(
                    offset,
                    "a record of the token before, or the first of another",
                    "neither",
                ));
            }
            let list = match record.kind {
                Kind::Kept if route.refused.is_empty() => &mut route.kept,
                Kind::Refused => &mut route.refused,
                Kind::Nothing if offset == route.offset => {
                    self.at += 1;
                    if self.peek()?.is_some_and(|(record, _)| !record.first) {
                        return Err(TraceError::damaged(
                            offset,
                            "no other record of a token without pairs",
                            "one",
                        ));
                    }
                    break;
                }
                _ => {
                    return Err(TraceError::damaged(
                        offset,
                        "kept pairs before refused ones",
                        "another order",
                    ));
                }
            };
            if list.last().is_some_and(|before| before.rank >= record.pair.rank) {
                return Err(TraceError::damaged(offset, "ascending ranks", record.pair.rank));
            }
            if list.iter().any(|before| before.expert == record.pair.expert) && record.kind == Kind::Kept {
                return Err(TraceError::damaged(offset, "an expert once", record.pair.expert));
            }
            memory::reserve(list, 1, "pairs of a token")?;
            list.push(record.pair);
            self.at += 1;
        }
        Ok(true)
    }

    /// The next record, which stays the next, and where it lies.
    fn peek(&mut self) -> Result<Option<(Record, u64)>, TraceError> {
        while (self.at + 1) * BYTES >= self.bytes.len() {
            if self.ended {
                return Ok(None);
            }
            self.load()?;
        }
        let (records, _) = self.bytes.as_chunks();
        let offset = self.offset + (self.at * BYTES) as u64;
        let record = Record::from_bytes(&records[self.at], offset)?;
        self.check_record(&record, offset)?;
        self.place = Some((record.step, record.layer));
        Ok(Some((record, offset)))
    }

    /// Reads the next stretch, up to its check.
    fn load(&mut self) -> Result<(), TraceError> {
        const STRETCH: usize = (CHECKED + 1) * BYTES;
        self.offset += self.bytes.len() as u64;
        self.total += (self.bytes.len() / BYTES).saturating_sub(1) as u64;
        self.bytes.clear();
        self.at = 0;
        memory::reserve(&mut self.bytes, STRETCH, "records of a trace")?;
        self.source.by_ref().take(STRETCH as u64).read_to_end(&mut self.bytes)?;
        let end = self.offset + self.bytes.len() as u64;
        let cut = || TraceError::damaged(end, "the check that ends a trace", "the end of the file");
        if self.bytes.is_empty() || !self.bytes.len().is_multiple_of(BYTES) {
            return Err(cut());
        }
        let (records, _) = self.bytes.as_chunks::<BYTES>();
        let count = records.len() - 1;
        let (data, offset) = (&self.bytes[..count * BYTES], self.offset + (count * BYTES) as u64);
        let check = Record::from_bytes(&records[count], offset)?;
        if check.kind != Kind::Check {
            return Err(if self.bytes.len() < STRETCH {
                cut()
            } else {
                TraceError::damaged(offset, "a check", "another record")
            });
        }
        let mut sum = std::mem::take(&mut self.sum);
        sum.update(data);
        let (sum, total) = (sum.finalize(), self.total + count as u64);
        if sum != check.sequence {
            let stretch = format!("records from byte {} on with the sum {:08x}", self.offset, check.sequence);
            return Err(TraceError::damaged(self.offset, stretch, format!("{sum:08x}")));
        }
        if records[count] != Record::check(count as u32, sum, total, check.pair.rank == 1).to_bytes() {
            return Err(TraceError::damaged(
                offset,
                format!("a check of {count} records of {total}"),
                "another",
            ));
        }
        self.ended = check.pair.rank == 1;
        if self.ended && !self.source.fill_buf()?.is_empty() {
            return Err(TraceError::damaged(end, "the end of the file", "more"));
        }
        if !self.ended && self.bytes.len() < STRETCH {
            return Err(cut());
        }
        Ok(())
    }

    /// Whether a record is of the model, and comes after the one before it.
    fn check_record(&self, record: &Record, offset: u64) -> Result<(), TraceError> {
        let Record { step, layer, pair, kind, .. } = *record;
        let Some(&experts) = self.header.experts.get(usize::from(layer)) else {
            return Err(TraceError::damaged(
                offset,
                format!("a layer below {}", self.header.experts.len()),
                layer,
            ));
        };
        let fits = match kind {
            Kind::Check => return Err(TraceError::damaged(offset, "no check before 1,024 records", "one")),
            Kind::Nothing => pair.expert == NO_EXPERT && pair.requested == NO_EXPERT && pair.rank == 0,
            Kind::Kept | Kind::Refused => {
                pair.expert < experts && pair.requested < experts && pair.rank < experts
            }
        };
        if !fits {
            let found = format!("expert {}, requested {}, rank {}", pair.expert, pair.requested, pair.rank);
            return Err(TraceError::damaged(
                offset,
                format!("less than {experts}, the layer's number of experts"),
                found,
            ));
        }
        let weighed = kind == Kind::Kept && self.header.weights == TraceWeights::Combination;
        if !pair.weight.is_finite() || !weighed && pair.weight.to_bits() != 0 {
            return Err(TraceError::damaged(
                offset,
                "a finite weight, 0 where the pair was refused or the header says that there are none",
                pair.weight,
            ));
        }
        let after = match self.place {
            None => true,
            Some((before, of)) => (step == before && layer >= of) || step > before,
        };
        if !after {
            return Err(TraceError::damaged(
                offset,
                "passes and layers in order",
                format!("pass {step}, layer {layer}"),
            ));
        }
        Ok(())
    }
}
