//! What a budget of memory would mean for tokens whose routes are known.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use moe_core::expert_cache::{Answer, ExpertCache};
use moe_core::memory;
use moe_router::trace::{TokenRoute, TraceReader};
use serde::Serialize;

use super::place::ExpertPlace;
use crate::{Error, Result};

/// What passes that route as a trace says would ask of the experts of a model under a budget, exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Foretold {
    /// Passes.
    pub passes: u64,
    /// Tokens, counted in the first layer that has any.
    pub tokens: u64,
    /// Times that a pass wants an expert of a layer.
    pub requests: u64,
    /// Times that it is in memory.
    pub hits: u64,
    /// Bytes of weights read for the others.
    pub bytes_read: u64,
    /// Seconds that the disk alone takes for that, as fast as it was found to be; none for weights that are no file.
    pub disk_seconds: Option<f64>,
}

/// The experts of a pass in a layer.
#[derive(Debug, Default)]
struct Wanted {
    place: Option<(u32, u16)>,
    /// Distinct, in ascending order, as the engine asks for them.
    experts: Vec<usize>,
}

impl Foretold {
    /// Runs a trace through a cache.
    pub(super) fn of(mut cache: ExpertCache, places: &[Vec<ExpertPlace>], path: &Path) -> Result<Self> {
        let broken = |source| Error::Trace { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
        let mut trace = TraceReader::new(BufReader::new(file)).map_err(broken)?;
        let of_trace = trace.header().experts.iter().map(|&experts| usize::from(experts));
        let of_model = places.iter().map(Vec::len);
        if !of_model.clone().eq(of_trace.clone()) {
            let name = |counts: &mut dyn Iterator<Item = usize>| {
                format!("{:?} experts by layer", counts.collect::<Vec<_>>())
            };
            let (expected, found) = (name(&mut of_model.clone()), name(&mut of_trace.clone()));
            return Err(Error::Setting { setting: "trace", expected, found });
        }
        let (mut found, mut wanted, mut route) = (Self::default(), Wanted::default(), TokenRoute::default());
        let (mut step, mut first) = (None, None);
        while trace.next(&mut route).map_err(broken)? {
            let place = (route.step, route.layer);
            if wanted.place != Some(place) {
                found.ask(&mut cache, places, &mut wanted)?;
                if step.replace(route.step) != Some(route.step) {
                    cache.begin_step();
                    found.passes += 1;
                }
                wanted.place = Some(place);
            }
            found.tokens += u64::from(route.layer == *first.get_or_insert(route.layer));
            memory::reserve(&mut wanted.experts, route.kept.len(), "experts of a pass")
                .map_err(moe_core::Error::from)
                .map_err(of_layer(route.layer))?;
            wanted.experts.extend(route.experts());
        }
        found.ask(&mut cache, places, &mut wanted)?;
        Ok(found)
    }

    fn ask(
        &mut self,
        cache: &mut ExpertCache,
        places: &[Vec<ExpertPlace>],
        Wanted { place, experts }: &mut Wanted,
    ) -> Result<()> {
        let Some((_, layer)) = place.take() else { return Ok(()) };
        let (of_layer, layer) = (of_layer(layer), usize::from(layer));
        experts.sort_unstable();
        experts.dedup();
        cache.begin_layer(layer, experts.iter().copied()).map_err(of_layer)?;
        let mut evicted = Vec::new();
        for expert in experts.drain(..) {
            self.requests += 1;
            match cache.request(expert, &mut evicted).map_err(of_layer)? {
                Answer::Hit => self.hits += 1,
                Answer::Load | Answer::Stream => self.bytes_read += places[layer][expert].bytes(),
            }
        }
        Ok(())
    }
}

/// The error of a layer.
fn of_layer(layer: u16) -> impl Fn(moe_core::Error) -> Error + Copy {
    move |error| Error::moe(usize::from(layer), error, |row| row)
}
