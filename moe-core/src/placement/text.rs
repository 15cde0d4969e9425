//! Placements as text.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

use super::{Placement, WHAT};

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layers, experts, ranks, .. } = self;
        writeln!(f, "placement layers={layers} experts={experts} ranks={ranks}")?;
        for layer in 0..*layers {
            for expert in 0..*experts {
                for (i, rank) in self.holders(layer, expert).iter().enumerate() {
                    let before = match (expert, i) {
                        (0, 0) => "",
                        (_, 0) => " ",
                        _ => ",",
                    };
                    write!(f, "{before}{rank}")?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl FromStr for Placement {
    type Err = Error;

    /// Reads what `Display` writes; blanks are spaces or tabs, any number of them, and empty lines at the end are none.
    ///
    /// # Errors
    ///
    /// [`Error::Residency`], which names the line; and those of [`from_holders`](Placement::from_holders). What the first line claims
    /// takes no memory: the lines themselves do.
    fn from_str(text: &str) -> Result<Self> {
        let mut lines = text.trim_end().lines();
        let first = lines.next().unwrap_or_default();
        let [layers, experts, ranks] = header(first).ok_or_else(|| {
            Error::residency("placement, line 1", "placement layers=L experts=E ranks=R", short(first))
        })?;
        let mut placement = Self::empty(layers, experts, ranks)?;
        let mut found = 0;
        for (layer, line) in lines.enumerate() {
            let at = || format!("placement, line {}", layer + 2);
            if layer == layers {
                return Err(Error::residency(at(), "the end of the text", short(line)));
            }
            found = layer + 1;
            let entries = line.split_whitespace().count();
            if entries != experts {
                return Err(Error::residency(at(), format!("holders of {experts} experts"), entries));
            }
            for entry in line.split_whitespace() {
                for rank in entry.split(',') {
                    let wrong = |_| Error::residency(at(), "ranks such as 0 or 0,1", short(entry));
                    placement.hold(rank.parse().map_err(wrong)?)?;
                }
                placement.seal_expert()?;
            }
        }
        if found != layers {
            return Err(Error::residency(WHAT, format!("lines of {layers} layers"), found));
        }
        Ok(placement)
    }
}

fn header(line: &str) -> Option<[usize; 3]> {
    let mut words = line.split_whitespace();
    if words.next() != Some("placement") {
        return None;
    }
    let mut number = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
    let numbers = [number("layers")?, number("experts")?, number("ranks")?];
    words.next().is_none().then_some(numbers)
}

/// So much of a text as an error can show.
fn short(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}
