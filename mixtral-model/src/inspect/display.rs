//! The report for people.

use std::collections::BTreeMap;
use std::fmt;

use super::{About, Found, KindReport, Report};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let g = &self.geometry;
        match &self.about {
            Some(about) => writeln!(f, "{}", about.source)?,
            None => writeln!(f, "{}", self.path.display())?,
        }
        writeln!(
            f,
            "weights     {} in {} tensors, {} file{}, {}",
            Bytes(self.file_bytes),
            self.tensors,
            self.files,
            plural(self.files),
            names(&self.dtypes),
        )?;
        writeln!(f, "layout      {}", self.layout)?;
        writeln!(
            f,
            "parameters  {} ({}), of which {} act on a token",
            grouped(self.parameters),
            Count(self.parameters),
            Count(self.active_parameters)
        )?;
        for of_kind in &self.kinds {
            let KindReport { kind, tensors, parameters, bytes, dtypes } = of_kind;
            let (parameters, bytes) = (Count(*parameters), Bytes(*bytes));
            writeln!(
                f,
                "  {:<10}{parameters:>10} {bytes:>10} in {tensors} tensor{}, {}",
                kind.name(),
                plural(*tensors),
                names(dtypes)
            )?;
        }
        writeln!(
            f,
            "shape       {} layers, width {}, {} experts of {}, {} chosen, vocabulary {}",
            g.layers, g.hidden_size, g.experts, g.intermediate_size, g.experts_per_token, g.vocab_size
        )?;
        write!(f, "attention   {} heads of {}, {} for keys and values, ", g.heads, g.head_dim, g.kv_heads)?;
        match self.sliding_window {
            None => write!(f, "full causal")?,
            Some(window) => write!(f, "window of {window}")?,
        }
        match &self.rope_scaling {
            None => writeln!(f)?,
            Some(scaling) => writeln!(f, ", RoPE scaled: {scaling}")?,
        }
        writeln!(
            f,
            "cache       {} a token in {}, {} for {} positions",
            Bytes(self.kv_bytes_per_token),
            self.kv_type,
            Bytes(self.memory.kv_cache),
            self.kv_positions
        )?;
        write!(f, "memory      ")?;
        match (self.memory.available, self.memory.holds_everything(), self.memory.holds_cache()) {
            (Some(free), Some(true), _) => writeln!(f, "{} available: weights and cache fit", Bytes(free))?,
            (Some(free), _, Some(true)) => {
                writeln!(
                    f,
                    "{} available: the cache fits, weights are read from disk again and again",
                    Bytes(free)
                )?;
            }
            (Some(free), ..) => writeln!(f, "{} available: not enough for the cache", Bytes(free))?,
            (None, ..) => writeln!(f, "unknown")?,
        }
        if let Some(about) = &self.about {
            about.fmt(f)?;
        }
        if let Some(first) = self.unused.first() {
            let rest = self.unused.len() - 1;
            write!(f, "unused      {}", first.escape_debug())?;
            if rest > 0 {
                write!(f, " and {rest} more tensor{}", plural(rest))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut warnings = self.warnings.clone();
        match &self.tokenizer {
            Found::Is(tokenizer) => {
                warnings.extend_from_slice(&tokenizer.warnings);
                writeln!(f, "tokenizer   {} pieces", tokenizer.pieces)?;
            }
            Found::Not { error } => writeln!(f, "tokenizer   none: {error}")?,
        }
        match &self.chat {
            Found::Is(chat) => writeln!(f, "chat        {}: {}", chat.format, chat.evidence)?,
            Found::Not { error } => writeln!(f, "chat        none: {error}")?,
        }
        warnings.iter().try_for_each(|warning| writeln!(f, "warning     {warning}"))
    }
}

/// `f32 and q4_k`.
fn names(dtypes: &BTreeMap<String, u64>) -> String {
    dtypes.keys().map(String::as_str).collect::<Vec<_>>().join(" and ")
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// All digits, in groups of three.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes, in the decimal units of disks and model cards.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&scaled(self.0, [" B", " kB", " MB", " GB", " TB"]))
    }
}

/// A number of parameters.
struct Count(u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&scaled(self.0, ["", " K", " M", " B", " T"]))
    }
}

/// Three or four significant digits and a unit.
fn scaled(n: u64, units: [&str; 5]) -> String {
    if n < 1000 {
        return format!("{n}{}", units[0]);
    }
    let (mut value, mut unit) = (n as f64 / 1000.0, 1);
    while value >= 999.5 && unit < 4 {
        (value, unit) = (value / 1000.0, unit + 1);
    }
    let digits = if value < 10.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    format!("{value:.digits$}{}", units[unit])
}
