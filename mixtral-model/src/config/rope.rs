//! The rotary embedding's base and scaling, as `config.json` spells them.

use std::fmt;

use super::fields::Fields;
use crate::{Error, Result};

/// How the inverse frequencies of the rotary embedding are changed for texts longer than those of the first training.
///
/// Each variant computes what Transformers computes for the `rope_type` of its name, with the same roundings.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all: `default`.
    #[default]
    None,
    /// All are divided by `factor` (Chen et al., 2306.15595): `linear`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Those that turn less than `low_freq_factor` times in the original context are divided by `factor`, those that turn more
    /// than `high_freq_factor` times are kept, and those between are blended (Llama 3.1, 2407.21783): `llama3`.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Positive.
        low_freq_factor: f64,
        /// More than `low_freq_factor`.
        high_freq_factor: f64,
        /// The longest sequence of the first training: `original_max_position_embeddings`.
        original_max_positions: usize,
    },
    /// As `Llama3`, blended along the index of the frequency, and cosines and sines are multiplied by `attention_factor` (Peng
    /// et al., 2309.00071): `yarn`.
    Yarn {
        /// At least 1.
        factor: f64,
        /// Positive. Where the file does not say, `1 + 0.1 ln(factor)`, or the quotient of two such numbers that `mscale` and
        /// `mscale_all_dim` give.
        attention_factor: f64,
        /// What turns more often in the original context is kept; at least `beta_slow`.
        beta_fast: f64,
        /// What turns less often in the original context is divided by `factor`; positive.
        beta_slow: f64,
        /// Whether the two ends of the blend are rounded outwards to whole indices.
        truncate: bool,
        /// The longest sequence of the first training: `original_max_position_embeddings`.
        original_max_positions: usize,
    },
}

impl fmt::Display for RopeScaling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::None => f.write_str("none"),
            Self::Linear { factor } => write!(f, "linear, factor {factor}"),
            Self::Llama3 { factor, original_max_positions: original, .. } => {
                write!(f, "llama3, factor {factor} beyond {original} positions")
            }
            Self::Yarn { factor, original_max_positions: original, .. } => {
                write!(f, "yarn, factor {factor} beyond {original} positions")
            }
        }
    }
}

/// A setting that means nothing.
pub(super) struct Fault {
    /// Its key.
    pub(super) key: &'static str,
    pub(super) expected: &'static str,
    pub(super) found: String,
}

impl RopeScaling {
    /// The first setting that means nothing, if there is one.
    pub(super) fn fault(&self) -> Option<Fault> {
        let is_positive = |value: f64| value > 0.0 && (value as f32).is_finite();
        let check = |key, value: f64, holds: bool, expected| {
            (!holds).then(|| Fault { key, expected, found: value.to_string() })
        };
        let positive = |key, value| check(key, value, is_positive(value), "a positive finite number in f32");
        let factor_of = |value| {
            let holds = value >= 1.0 && is_positive(value);
            check("factor", value, holds, "a finite number in f32, at least 1")
        };
        let original = |n: usize| check("original_max_position_embeddings", n as f64, n > 0, "at least 1");
        match *self {
            Self::None => None,
            Self::Linear { factor } => factor_of(factor),
            Self::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max_positions } => {
                let above = is_positive(high) && high as f32 > low as f32;
                factor_of(factor)
                    .or(original(original_max_positions))
                    .or(positive("low_freq_factor", low))
                    .or(check(
                        "high_freq_factor",
                        high,
                        above,
                        "a finite number in f32, more than low_freq_factor",
                    ))
            }
            Self::Yarn {
                factor,
                attention_factor,
                beta_fast: fast,
                beta_slow: slow,
                original_max_positions,
                truncate: _,
            } => {
                let above = is_positive(fast) && fast >= slow;
                factor_of(factor)
                    .or(original(original_max_positions))
                    .or(positive("attention_factor", attention_factor))
                    .or(positive("beta_slow", slow))
                    .or(check("beta_fast", fast, above, "a finite number in f32, at least beta_slow"))
            }
        }
    }
}

/// Base and scaling of the rotary embedding, in whichever spelling they are there.
pub(super) fn read(fields: &Fields<'_>, max_positions: usize) -> Result<(f64, RopeScaling)> {
    let mut theta = ("rope_theta", fields.number("rope_theta")?);
    let mut scaling: Option<RopeScaling> = None;
    require_whole_rotation(fields)?;
    let original = fields.size("original_max_position_embeddings")?;
    for (field, prefix) in [("rope_parameters", "rope_parameters."), ("rope_scaling", "rope_scaling.")] {
        let Some(map) = fields.object(field)?.filter(|map| !map.is_empty()) else { continue };
        let inner = Fields { map, path: fields.path, prefix };
        let found = Table { inner: &inner, original, max_positions }.scaling()?;
        if scaling.is_some_and(|known| known != found) {
            return Err(fields.error(field, "the scaling that rope_parameters says"));
        }
        scaling = Some(found);
        match (theta.1, inner.number("rope_theta")?) {
            (Some(known), Some(other)) if known != other => {
                return Err(inner.error("rope_theta", format!("{known}, as {} says", theta.0)));
            }
            (None, Some(found)) => theta = (field, Some(found)),
            _ => {}
        }
        if let Some(fault) = found.fault() {
            return Err(Error::Config {
                path: fields.path.to_path_buf(),
                field: format!("{prefix}{}", fault.key),
                expected: fault.expected.to_owned(),
                found: fault.found,
            });
        }
    }
    Ok((theta.1.unwrap_or(1e6), scaling.unwrap_or_default()))
}

/// One of the two objects that say how the embedding is scaled.
struct Table<'a> {
    inner: &'a Fields<'a>,
    /// The `original_max_position_embeddings` that stands beside the object.
    original: Option<usize>,
    max_positions: usize,
}

impl Table<'_> {
    fn scaling(&self) -> Result<RopeScaling> {
        let inner = self.inner;
        require_whole_rotation(inner)?;
        // A table by kind of layer is of another model.
        if let Some((key, _)) = inner.map.iter().find(|(_, value)| value.is_object()) {
            return Err(inner.error(key, "a number, as all layers turn alike"));
        }
        let kind = match (inner.text("rope_type")?, inner.text("type")?) {
            (Some(new), Some(old)) if new != old => {
                return Err(inner.error("type", format!("{new:?}, as rope_type says")));
            }
            (new, old) => new.or(old),
        };
        match kind {
            Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: self.required("factor")? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: self.required("factor")?,
                low_freq_factor: self.required("low_freq_factor")?,
                high_freq_factor: self.required("high_freq_factor")?,
                original_max_positions: self.original_max_positions()?,
            }),
            Some("yarn") => self.yarn(),
            Some(_) => {
                let key = if inner.get("rope_type").is_some() { "rope_type" } else { "type" };
                Err(inner.error(key, "\"default\", \"linear\", \"llama3\" or \"yarn\""))
            }
            // Other keys ask for a scaling that is not named.
            None => {
                let known =
                    |key: &str| matches!(key, "rope_theta" | "rope_type" | "type" | "partial_rotary_factor");
                match inner.map.iter().find(|(key, value)| !known(key) && !value.is_null()) {
                    Some((key, _)) => Err(inner.error(key, "a rope_type beside it")),
                    None => Ok(RopeScaling::None),
                }
            }
        }
    }

    fn yarn(&self) -> Result<RopeScaling> {
        let inner = self.inner;
        let original_max_positions = self.original_max_positions()?;
        let factor = if inner.is_null("factor") {
            self.max_positions as f64 / original_max_positions as f64
        } else {
            self.required("factor")?
        };
        // 0 means missing, as in Transformers.
        let number = |key| Ok::<_, Error>(inner.number(key)?.filter(|&value| value != 0.0));
        let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let attention_factor = match inner.number("attention_factor")? {
            Some(given) => given,
            None => match (number("mscale")?, number("mscale_all_dim")?) {
                (Some(scale), Some(all)) => magnitude(scale) / magnitude(all),
                _ => magnitude(1.0),
            },
        };
        Ok(RopeScaling::Yarn {
            factor,
            attention_factor,
            beta_fast: number("beta_fast")?.unwrap_or(32.0),
            beta_slow: number("beta_slow")?.unwrap_or(1.0),
            // `null` is false to Transformers.
            truncate: inner.flag("truncate")?.unwrap_or(!inner.is_null("truncate")),
            original_max_positions,
        })
    }

    fn required(&self, key: &str) -> Result<f64> {
        self.inner.number(key)?.ok_or_else(|| self.inner.error(key, "a number"))
    }

    /// The length that the model was first trained for, which may be the whole context.
    fn original_max_positions(&self) -> Result<usize> {
        let key = "original_max_position_embeddings";
        match (self.original, self.inner.size(key)?) {
            (Some(beside), Some(within)) if beside != within => {
                Err(self.inner.error(key, format!("{beside}, as the {key} beside it says")))
            }
            (beside, within) => Ok(beside.or(within).unwrap_or(self.max_positions)),
        }
    }
}

fn require_whole_rotation(fields: &Fields<'_>) -> Result<()> {
    match fields.number("partial_rotary_factor")? {
        Some(factor) if factor != 1.0 => Err(fields.error("partial_rotary_factor", "1")),
        _ => Ok(()),
    }
}
