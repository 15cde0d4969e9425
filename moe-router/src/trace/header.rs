//! What a trace says of itself.

use std::io::{BufRead, Read};

use super::TraceError;
use super::record::BYTES;

/// How the first line begins.
const MAGIC: &str = "mixtral-route-trace 1 ";
/// Bytes of a header, at most.
const MOST: usize = 1 << 20;

/// What the weights of a trace are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TraceWeights {
    /// Combination weights: what the outputs of experts were multiplied with.
    #[default]
    Combination,
    /// There are none, as in a trace that was made of a list of experts: all are 0.
    None,
}

impl TraceWeights {
    /// As the header has it.
    fn key(self) -> &'static str {
        match self {
            Self::Combination => "combination",
            Self::None => "none",
        }
    }
}

/// What a trace says of itself: layers are numbered from 0, experts are those of the router's logits, weights are combination weights in
/// f32 unless there are none, after capacity; what capacity or a mask refused is recorded too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TraceHeader {
    /// Number of experts of each layer.
    pub experts: Vec<u16>,
    /// What the weights are.
    pub weights: TraceWeights,
    /// Name of the model.
    pub model: Option<String>,
    /// Digest of its checkpoint.
    pub checkpoint: Option<String>,
    /// The routers, where they are not the model's own.
    pub router: Option<String>,
    /// The file whose gates took the place of the model's own, with its digest.
    pub gates: Option<String>,
    /// What made it.
    pub program: Option<String>,
}

impl TraceHeader {
    /// Of a model with so many experts in each layer.
    pub fn new(experts: impl IntoIterator<Item = u16>) -> Self {
        Self { experts: experts.into_iter().collect(), ..Self::default() }
    }

    /// The fields that are texts, with their keys.
    fn texts(&mut self) -> [(&'static str, &mut Option<String>); 5] {
        [
            ("model", &mut self.model),
            ("checkpoint", &mut self.checkpoint),
            ("router", &mut self.router),
            ("gates", &mut self.gates),
            ("program", &mut self.program),
        ]
    }

    /// As a file begins.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, TraceError> {
        check_experts(&self.experts)
            .map_err(|(expected, found)| TraceError::unfit("experts", expected, found))?;
        let experts: Vec<_> = self.experts.iter().map(u16::to_string).collect();
        let mut lines = format!(
            "experts={}\nweights={}\ncapacity=after\nids=logical\n",
            experts.join(","),
            self.weights.key()
        );
        for (key, text) in self.clone().texts() {
            if let Some(text) = text {
                // A line each.
                let text: String = text.chars().flat_map(escaped).collect();
                lines += &format!("{key}={text}\n");
            }
        }
        // The length stands in the header itself.
        let length = (MAGIC.len() + 8 + lines.len()).next_multiple_of(BYTES);
        if length > MOST {
            return Err(TraceError::unfit("header", format!("at most {MOST} bytes"), length));
        }
        let mut text = format!("{MAGIC}{length}\n{lines}").into_bytes();
        text.resize(length - 1, b' ');
        text.push(b'\n');
        Ok(text)
    }

    /// Reads a header, and gives its bytes too.
    pub(super) fn read(source: &mut impl BufRead) -> Result<(Self, Vec<u8>), TraceError> {
        let no_trace = |found: &[u8]| TraceError::damaged(0, "a route trace", String::from_utf8_lossy(found));
        let mut first = Vec::new();
        source.by_ref().take(64).read_until(b'\n', &mut first)?;
        let line = std::str::from_utf8(&first).ok().and_then(|line| line.strip_suffix('\n'));
        let Some(length) = line.and_then(|line| line.strip_prefix(MAGIC)) else {
            return Err(no_trace(&first));
        };
        let length = length
            .parse()
            .ok()
            .filter(|length: &usize| length.is_multiple_of(BYTES) && (first.len()..=MOST).contains(length));
        let Some(length) = length else { return Err(no_trace(&first)) };
        let mut text = Vec::new();
        source.by_ref().take((length - first.len()) as u64).read_to_end(&mut text)?;
        let offset = first.len() as u64;
        if text.len() != length - first.len() {
            return Err(TraceError::damaged(
                offset,
                format!("{length} bytes of header"),
                first.len() + text.len(),
            ));
        }
        let text = String::from_utf8(text)
            .map_err(|error| TraceError::damaged(offset, "text in UTF-8", error.utf8_error()))?;
        let (mut header, mut experts) = (Self::default(), None);
        for line in text.trim_end().lines() {
            let Some((key, value)) = line.split_once('=') else {
                return Err(TraceError::damaged(offset, "lines of key=value", line));
            };
            let known = [("capacity", "after"), ("ids", "logical")];
            if let Some((_, only)) = known.into_iter().find(|(name, _)| *name == key) {
                if value != only {
                    return Err(TraceError::damaged(offset, format!("{key}={only}"), line));
                }
            } else if key == "weights" {
                let known = [TraceWeights::Combination, TraceWeights::None];
                header.weights = known.into_iter().find(|known| known.key() == value).ok_or_else(|| {
                    TraceError::damaged(offset, "weights=combination or weights=none", line)
                })?;
            } else if key == "experts" {
                let list = value.split(',').map(|count| count.parse::<u16>().ok().filter(|&count| count > 0));
                let list = if value.is_empty() { Some(Vec::new()) } else { list.collect::<Option<Vec<_>>>() };
                experts =
                    Some(list.ok_or_else(|| {
                        TraceError::damaged(offset, "numbers of experts, 1 to 65535", line)
                    })?);
            } else if let Some((_, text)) = header.texts().into_iter().find(|(name, _)| *name == key) {
                *text = Some(unescaped(value));
            }
            // What a later version may add is passed over.
        }
        header.experts = experts.ok_or_else(|| TraceError::damaged(offset, "experts=...", "no such line"))?;
        check_experts(&header.experts)
            .map_err(|(expected, found)| TraceError::damaged(offset, expected, found))?;
        first.extend(text.as_bytes());
        Ok((header, first))
    }
}

/// Whether a model has so many layers and experts that whoever counts them wants memory for no good reason; then what would do.
fn check_experts(experts: &[u16]) -> Result<(), (String, String)> {
    /// Far more than any model has.
    const MOST: usize = 1 << 20;
    let all: usize = experts.iter().map(|&count| usize::from(count)).sum();
    match experts.len() <= usize::from(u16::MAX) && all <= MOST {
        true => Ok(()),
        false => Err((
            format!("at most {} layers, and {MOST} experts in all of them", u16::MAX),
            format!("{} layers with {all} experts", experts.len()),
        )),
    }
}

fn escaped(c: char) -> impl Iterator<Item = char> {
    let pair = match c {
        '\\' => ['\\', '\\'],
        '\n' => ['\\', 'n'],
        '\r' => ['\\', 'r'],
        other => [other, '\0'],
    };
    let count = if pair[1] == '\0' { 1 } else { 2 };
    pair.into_iter().take(count)
}

fn unescaped(text: &str) -> String {
    let mut chars = text.chars();
    let next = |chars: &mut std::str::Chars<'_>| match chars.next()? {
        '\\' => Some(match chars.next()? {
            'n' => '\n',
            'r' => '\r',
            other => other,
        }),
        other => Some(other),
    };
    std::iter::from_fn(|| next(&mut chars)).collect()
}
