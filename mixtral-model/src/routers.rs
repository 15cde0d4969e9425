//! Routing policies in the place of a model's own, layer by layer.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use moe_core::{Locality, Router};
use moe_router::RouterSpec;

use crate::{Error, Model, Result};

/// A router for some layers of a model, or for all; the others keep their own. A [step](crate::Step::with_routers) takes one, so that
/// sessions that are decoded together may be routed in different ways.
#[derive(Clone)]
pub struct LayerRouters {
    layers: Vec<Option<Arc<dyn Router>>>,
    /// Whether one of them was named to route by a trace.
    replays: bool,
}

impl LayerRouters {
    /// None: every layer of the model keeps its own.
    pub fn new(model: &Model) -> Self {
        Self { layers: vec![None; model.config().layers], replays: false }
    }

    /// Those of a text: a [spec](RouterSpec) for all layers, `top-k:k=1`, or specs for layers, counted from 0 and ends included:
    /// `0-15@top-k:k=1;16-30,31@capped(top-k:k=2):factor=1.0`.
    ///
    /// # Errors
    ///
    /// [`Error::RouterSpec`] for a text that is no router; [`Error::Setting`] for one of another form, a layer that the model does not have or that is named twice;
    /// [`Error::Layer`] where a router cannot do with the layer's number of experts.
    pub fn parse(model: &Model, text: &str) -> Result<Self> {
        let mut routers = Self::new(model);
        let layers = model.config().layers;
        for (at, spec) in parts(text)? {
            routers.replays |= spec.trace().is_some();
            let router = built(&spec)?;
            let ranges = match at {
                None => vec![0..=layers.saturating_sub(1)],
                Some(at) => at.split(',').map(|range| parse_range(range, layers)).collect::<Result<_>>()?,
            };
            for layer in ranges.into_iter().flatten() {
                if routers.at(layer).is_some() {
                    return Err(not_as_expected("every layer at most once", format!("layer {layer} twice")));
                }
                routers.set(model, layer, router.clone())?;
            }
        }
        Ok(routers)
    }

    /// Whether the routers of a [text](Self::parse) read a file, as one that routes by a trace does: whoever takes texts from strangers asks
    /// here, before anything is read.
    ///
    /// # Errors
    ///
    /// [`Error::RouterSpec`] for a text that is no router; [`Error::Setting`] for one of another form.
    pub fn reads_a_file(text: &str) -> Result<bool> {
        Ok(parts(text)?.iter().any(|(_, spec)| spec.trace().is_some()))
    }

    /// What a token's experts depend on under the routers of a [text](Self::parse) at most, where it may be without a model.
    ///
    /// # Errors
    ///
    /// [`Error::RouterSpec`] for a text that is no router; [`Error::Setting`] for one of another form; [`Error::Layer`].
    pub fn locality_of(text: &str) -> Result<Locality> {
        parts(text)?.iter().try_fold(Locality::Token, |most, (_, spec)| Ok(most.max(built(spec)?.locality())))
    }

    /// One router for every layer of a model, such as a [replay](moe_router::trace::Replay).
    ///
    /// # Errors
    ///
    /// As [`LayerRouters::set`].
    pub fn all(model: &Model, router: Arc<dyn Router>) -> Result<Self> {
        let mut routers = Self::new(model);
        (0..model.config().layers).try_for_each(|layer| routers.set(model, layer, router.clone()))?;
        Ok(routers)
    }

    /// Routes a layer by a router.
    ///
    /// # Errors
    ///
    /// As [`Model::replace_router`].
    pub fn set(&mut self, model: &Model, layer: usize, router: Arc<dyn Router>) -> Result<()> {
        model.moe_layer(layer)?.check_router(&*router).map_err(|source| Error::Layer { layer, source })?;
        let count = self.layers.len();
        match self.layers.get_mut(layer) {
            Some(place) => *place = Some(router),
            None => return Err(no_layer(layer, count)),
        }
        Ok(())
    }

    /// Whether one of them was [named](Self::parse) to route by a trace: then a token's experts depend on what they did when it was recorded.
    pub fn replays(&self) -> bool {
        self.replays
    }

    /// The router of a layer, if it is not the model's own.
    pub fn at(&self, layer: usize) -> Option<&dyn Router> {
        self.layers.get(layer)?.as_deref()
    }

    /// The same, to be held on to.
    pub(crate) fn shared(&self, layer: usize) -> Option<Arc<dyn Router>> {
        self.layers.get(layer)?.clone()
    }

    /// What a token's experts depend on under them: the weakest promise among all layers of the model.
    pub fn locality(&self, model: &Model) -> Locality {
        let layers = 0..model.config().layers;
        layers.map(|layer| model.router_at(layer, Some(self)).locality()).max().unwrap_or(Locality::Token)
    }
}

impl fmt::Debug for LayerRouters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let replaced = self.layers.iter().enumerate().filter_map(|(n, router)| router.is_some().then_some(n));
        f.write_str("LayerRouters of layers ")?;
        f.debug_list().entries(replaced).finish()
    }
}

/// The router of a spec.
pub(crate) fn built(spec: &RouterSpec) -> Result<Arc<dyn Router>> {
    // No layer is at fault: a spec that was parsed has settings that its router takes.
    let router = spec.build().map_err(|source| Error::Layer { layer: 0, source })?;
    Ok(router.into())
}

/// The same with some experts masked.
pub(crate) fn built_without(spec: &RouterSpec, experts: &[usize]) -> Result<Arc<dyn Router>> {
    if experts.is_empty() {
        return built(spec);
    }
    let off: Vec<_> = experts.iter().map(usize::to_string).collect();
    built(&format!("steered({spec}):off=[{}]", off.join(",")).parse()?)
}

/// The specs of a text, each with the layers that it is for where it is not for all.
fn parts(text: &str) -> Result<Vec<(Option<&str>, RouterSpec)>> {
    let (mut parts, mut rest) = (Vec::new(), Some(text));
    while let Some(text) = rest {
        let (part, after) = split_outside_quotes(text, ';');
        let is_one = parts.is_empty() && after.is_none();
        rest = after;
        let (at, spec) = match split_outside_quotes(part, '@') {
            (spec, None) if is_one => (None, spec),
            (_, None) => {
                let found = if part.trim().is_empty() { "nothing" } else { part };
                let expected = "LAYERS@SPEC;LAYERS@SPEC, such as 0-3@top-k:k=1;4@dense";
                return Err(not_as_expected(expected, found));
            }
            (at, Some(spec)) => (Some(at), spec),
        };
        parts.push((at, spec.parse()?));
    }
    Ok(parts)
}

/// What stands before the first of these characters that is in no quotation marks, and what after it.
fn split_outside_quotes(text: &str, at: char) -> (&str, Option<&str>) {
    let mut quoted = false;
    let found = text.char_indices().find(|&(_, c)| {
        quoted ^= c == '"';
        c == at && !quoted
    });
    match found {
        Some((place, c)) => (&text[..place], Some(&text[place + c.len_utf8()..])),
        None => (text, None),
    }
}

/// A layer, or two with all between them.
fn parse_range(text: &str, layers: usize) -> Result<RangeInclusive<usize>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.trim().parse::<usize>().ok();
    match number(first).zip(number(last)) {
        Some((first, last)) if first <= last && last < layers => Ok(first..=last),
        Some((_, last)) if last >= layers => Err(no_layer(last, layers)),
        _ => Err(not_as_expected("a layer, or the first and the last of several, such as 4-7", text)),
    }
}

pub(crate) fn no_layer(layer: usize, layers: usize) -> Error {
    let expected = format!("a number below {layers}");
    Error::Setting { setting: "layer", expected, found: layer.to_string() }
}

fn not_as_expected(expected: &str, found: impl fmt::Display) -> Error {
    let found = found.to_string().chars().take(200).flat_map(char::escape_debug).collect();
    Error::Setting { setting: "router", expected: expected.to_owned(), found }
}
