//! Every router of the crate as a line of text.

mod catalogue;
mod decorators;
mod error;
mod parse;
mod scored;
mod settings;
mod strategies;

use std::fmt;
use std::path::Path;

use moe_core::{Error, Result, Router};

pub use catalogue::{RouterEntry, Setting};
pub use error::SpecError;
use settings::{Settings, Value};

/// A router as text: `top-k:k=2`, `expert-choice:capacity=1.25`, `capped(top-k:k=2):factor=1.0,priority=score`.
///
/// ```text
/// spec     = name [ "(" spec ")" ] [ ":" setting { "," setting } ]
/// setting  = key "=" value
/// value    = number | word | "[" [ number { "," number } ] "]" | path
/// ```
///
/// Decorators have another router in brackets, at most 16 in each other. Spaces may stand between the parts. Names, settings,
/// defaults and what they mean are the [catalogue](Self::catalogue)'s. A spec that was parsed has settings that the routers
/// themselves accept, so that [`build`](Self::build) succeeds; whether they fit a layer (its number of experts, say) shows
/// when it routes. A setting that would do nothing beside the others, such as `p` without `divide=norm`, is an error, unless it is
/// as by default. A path stands between quotation marks where it has any of `( ) : , =`, and has none itself; only
/// [`replay`](Self::trace) takes one. Settings that cost time have a limit, so that a text from outside cannot keep a machine busy.
///
/// `Display` writes the canonical form: settings in the order of the catalogue, without those that are as by default. It
/// parses back to an equal spec. With the feature `serde`, a spec is that string.
///
/// ```
/// use moe_router::RouterSpec;
///
/// let spec: RouterSpec = "capped( top-k: weights=chosen, k=2 ): priority=score, factor=1".parse()?;
/// assert_eq!(spec.to_string(), "capped(top-k:k=2):factor=1.0,priority=score");
/// let router = spec.build()?;
///
/// let error = "capped(top-k:k=two)".parse::<RouterSpec>().unwrap_err();
/// assert_eq!(error.to_string(), "router, byte 15: expected a whole number, found \"two\"");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RouterSpec {
    entry: &'static RouterEntry,
    /// One for each setting of the entry; none is the default.
    values: Vec<Option<Value>>,
    inner: Option<Box<RouterSpec>>,
}

impl RouterSpec {
    /// Every router there is a name for: strategies first, then decorators.
    pub fn catalogue() -> impl Iterator<Item = &'static RouterEntry> {
        catalogue::entries()
    }

    /// The catalogue's entry of the outermost router.
    pub fn entry(&self) -> &'static RouterEntry {
        self.entry
    }

    /// The router in brackets.
    pub fn inner(&self) -> Option<&Self> {
        self.inner.as_deref()
    }

    /// The router.
    ///
    /// # Errors
    ///
    /// What the constructor of a router reports; never for a spec as it was parsed.
    pub fn build(&self) -> Result<Box<dyn Router>> {
        let inner = self.inner.as_ref().map(|inner| inner.build()).transpose()?;
        self.build_around(inner)
    }

    fn build_around(&self, inner: Option<Box<dyn Router>>) -> Result<Box<dyn Router>> {
        (self.entry.build)(Settings { entry: self.entry, values: &self.values }, inner)
    }

    /// The [trace](crate::trace) that it, or a router in it, reads when it first routes: `replay` has one. Whoever takes specs from strangers asks
    /// here.
    pub fn trace(&self) -> Option<&Path> {
        let own = self.values.iter().flatten().find_map(|value| match value {
            Value::Path(path) => Some(Path::new(path)),
            _ => None,
        });
        own.or_else(|| self.inner()?.trace())
    }

    /// Whether its paper takes the importance loss of the logits without noise: with `gaussian-noise` in it (V-MoE). All else is
    /// of the logits that it [decides on](Router::perturb).
    pub fn importance_without_noise(&self) -> bool {
        self.entry.name == "gaussian-noise" || self.inner().is_some_and(Self::importance_without_noise)
    }

    /// The router whose choices its losses count: without `without-nulls` in it, as the balance loss of AdaMoE counts null experts too
    /// ([2406.13233](https://arxiv.org/abs/2406.13233)). All else is itself.
    pub fn counted(&self) -> Self {
        match self.inner() {
            Some(inner) if self.entry.name == "without-nulls" => inner.counted(),
            inner => Self { inner: inner.map(|inner| Box::new(inner.counted())), ..self.clone() },
        }
    }

    /// The same with a selection bias for each expert, for the router in it that takes one.
    ///
    /// # Errors
    ///
    /// If none does, or it has one already.
    pub fn with_bias(mut self, bias: &[f32]) -> Result<Self> {
        let whole = self.to_string();
        let mut at = Some(&mut self);
        while let Some(spec) = at {
            if let Some(i) = spec.entry.settings.iter().position(|s| s.name == "bias") {
                if spec.values[i].is_some() {
                    let expected = "one list of biases".into();
                    return Err(Error::Router { setting: "selection bias", expected, found: "two".into() });
                }
                spec.values[i] = Some(Value::Singles(bias.to_vec())).filter(|_| !bias.is_empty());
                return Ok(self);
            }
            at = spec.inner.as_deref_mut();
        }
        let expected = "a router with the setting bias".into();
        Err(Error::Router { setting: "selection bias", expected, found: whole })
    }
}

impl fmt::Display for RouterSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.entry.name)?;
        if let Some(inner) = &self.inner {
            write!(f, "({inner})")?;
        }
        let given = self.entry.settings.iter().zip(&self.values);
        let given = given.filter_map(|(setting, value)| Some((setting.name, value.as_ref()?)));
        for (i, (name, value)) in given.enumerate() {
            let separator = if i == 0 { ':' } else { ',' };
            write!(f, "{separator}{name}={value}")?;
        }
        Ok(())
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for RouterSpec {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for RouterSpec {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
