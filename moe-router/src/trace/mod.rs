//! Route traces: which experts every token went to, in a file.
//!
//! [`TraceWriter`] records what routers did, as an observer, in constant memory; [`TraceReader`] gives it back, token by token;
//! [`Replay`] routes by it; [`TraceStats`] and [`TraceDiff`] say what is in one, and where two part.
//!
//! A trace is a header of text, and records of 32 bytes, little-endian. The first line of the header is `mixtral-route-trace 1 N`, with N the
//! bytes of the whole header, a multiple of 32; `key=value` lines follow, then spaces. A record is a pair of a token and an expert:
//!
//! | bytes | type | field | |
//! |---|---|---|---|
//! | 0 to 3 | u32 | `step` | the forward pass, from 0 |
//! | 4 to 7 | u32 | `sequence` | identity of the sequence |
//! | 8 to 11 | u32 | `position` | of the token in its sequence, from 0 |
//! | 12 to 15 | u32 | `token` | its id, or 2³² - 1 where nobody said |
//! | 16 to 19 | f32 | `weight` | combination weight; 0 where the pair was refused, or the header says `weights=none` |
//! | 20 to 21 | u16 | `layer` | from 0 |
//! | 22 to 23 | u16 | `expert` | logical id, that of the router's logits, from 0 |
//! | 24 to 25 | u16 | `requested` | the expert that was asked for, another one where the pair was rerouted |
//! | 26 to 27 | u16 | `rank` | how many choices of the token in the layer came before |
//! | 28 | u8 | `kind` | 0 kept, 1 refused, 2 a token of which no pair was asked for, 3 a check |
//! | 29 | u8 | `phase` | 0 where the pass read several tokens of the sequence, 1 where it read one |
//! | 30 | u8 | `first` | 1 for the first record of a token in a layer, else 0 |
//! | 31 | | | 0 |
//!
//! Records are in the order of passes, within them of layers, then of tokens as they lay in the batch, then kept pairs before refused ones, each by
//! rank. Padding is not recorded. A check follows every 1,024 records, and the last one: its `step` is the number of records since the
//! last check, its `sequence` the CRC-32 of their bytes, of the header's and theirs in the first check, `position` and `token` the low and high half of the number of
//! records since the beginning, and its `rank` is 1 if it ends the trace, else 0. So a trace that was cut off or changed is refused, with the
//! place.

mod diff;
mod error;
mod header;
mod reader;
mod record;
mod replay;
mod replay_file;
mod stats;
mod writer;

pub use diff::{LayerAgreement, TokenPlace, TraceDiff};
pub use error::TraceError;
pub use header::{TraceHeader, TraceWeights};
pub use reader::{TokenRoute, TraceReader};
pub use record::{Pair, Phase};
pub use replay::{Replay, ReplayWeights};
pub use replay_file::ReplayFile;
pub use stats::{LayerTrace, TraceStats};
pub use writer::TraceWriter;
