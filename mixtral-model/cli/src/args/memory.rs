//! A budget of memory.

use std::path::PathBuf;
use std::str::FromStr;

use mixtral_model::{DiskReads, ReadAhead};
use moe_core::expert_cache::CachePolicy;

/// How much memory there is to use.
#[derive(Debug, clap::Args)]
pub(crate) struct Budget {
    /// Memory that all of it may take, as 12GiB or 500MB, on Linux with the page cache that it causes: experts come from the disk when they are wanted,
    /// into what everything else leaves of it; results are the same. `inspect --memory` foretells what that costs
    #[arg(long, value_name = "BYTES", conflicts_with_all = ["read", "prefault", "lock"], help_heading = "Model")]
    pub(crate) memory: Option<Bytes>,
    /// Which expert makes room for another, of lru, lru-per-layer, lfu, lfu-per-layer:age=N, least-stale [default: lfu-per-layer]
    #[arg(long, value_name = "POLICY", requires = "memory", help_heading = "Model")]
    pub(crate) cache_policy: Option<CachePolicy>,
    /// Whether experts of the next layer are read before its router has spoken, as the present state lets one guess: on, off, or
    /// where passes are measured to be faster with it [default: measured]
    #[arg(long, value_name = "WHEN", requires = "memory", help_heading = "Model")]
    pub(crate) read_ahead: Option<ReadAhead>,
    /// How files are read: direct, past the system's page cache; cached, through it, from which what was read is dropped; or as is
    /// measured to be faster when the model is loaded [default: measured]
    #[arg(long, value_name = "HOW", requires = "memory", help_heading = "Model")]
    pub(crate) disk_reads: Option<DiskReads>,
    /// A route trace, or an importance matrix in a GGUF file: the experts that were wanted most there are in memory from the start
    #[arg(long, value_name = "FILE", requires = "memory", help_heading = "Model")]
    pub(crate) cache_prior: Option<PathBuf>,
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const UNITS: [(&str, u64); 9] = [
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("TiB", 1 << 40),
            ("kB", 1000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("TB", 1_000_000_000_000),
            ("B", 1),
        ];
        let unit = UNITS.into_iter().find_map(|(name, bytes)| Some((text.strip_suffix(name)?, bytes)));
        let (number, unit) = unit.unwrap_or((text, 1));
        let number = number.trim_end();
        let whole = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        let parts = || number.parse::<f64>().ok().map(|number| number * unit as f64);
        let parts = || parts().filter(|bytes| (1.0..1e18).contains(bytes)).map(|bytes| bytes as u64);
        let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let bytes = whole.or_else(parts).filter(|&bytes| bytes > 0 && plain);
        bytes.map(Self).ok_or_else(|| "expected a number of bytes, as 12GiB, 500MB or 1073741824".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        let bytes = |text: &str| text.parse::<Bytes>().ok().map(|bytes| bytes.0);
        assert_eq!(bytes("12GiB"), Some(12 << 30));
        assert_eq!(bytes("1.5 GiB"), Some(3 << 29));
        assert_eq!((bytes("500MB"), bytes("7"), bytes("7B")), (Some(500_000_000), Some(7), Some(7)));
        for text in [
            "",
            "GiB",
            "-1GiB",
            "1e3",
            "0",
            "0GB",
            "nan",
            "inf GB",
            "12GX",
            "99999999999TiB",
            "+5",
            "1.2.3MB",
        ] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
