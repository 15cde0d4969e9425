//! `mixtral trace simulate`.

use std::fmt::Write as _;

use moe_core::expert_cache::{CachePolicy, ExpertCache, ExpertSizes, LayerAccess, belady, simulate};
use moe_core::memory;
use moe_core::placement::{Placement, TokenRoute as Placed, Traffic};
use moe_router::trace::{TokenRoute, TraceStats};
use serde::Serialize;
use serde_json::json;

use super::{of_file, reader};
use crate::args::Simulate;
use crate::failure::{Failure, Result};
use crate::output::Output;

/// The distinct experts that passes use, by pass and layer.
#[derive(Default)]
struct Uses {
    /// Pass, layer, and where its experts end.
    places: Vec<(u64, usize, usize)>,
    experts: Vec<u32>,
}

#[derive(Serialize)]
struct Cached {
    policy: String,
    resident: u64,
    bytes: u64,
    requests: u64,
    hits: u64,
    hit_rate: f64,
    bytes_read: u64,
    share_of_bound: f64,
}

#[derive(Serialize)]
struct Spread {
    placement: &'static str,
    ranks: usize,
    tokens: u64,
    rows_sent: u64,
    rows_returned: u64,
    imbalance: f64,
}

pub(super) fn run(args: &Simulate) -> Result<()> {
    let (layers, experts) = {
        let reader = reader(&args.trace)?;
        let experts = reader.header().experts.iter().copied().max().unwrap_or(0);
        (reader.header().experts.len(), usize::from(experts))
    };
    let caches = caches(args, layers, experts)?;
    let placements = match args.ranks {
        Some(ranks) => placements(args, layers, experts, ranks.get())?,
        None => Vec::new(),
    };
    if args.json {
        let json = json!({ "caches": caches, "placements": placements });
        return Ok(Output::new().text(&format!("{json}\n"))?);
    }
    // Writing to a string cannot fail.
    let mut text = String::new();
    let width = caches.iter().map(|found| found.policy.len()).max().unwrap_or(0).max("policy".len());
    let _ = writeln!(text, "{:<width$}  resident  requests      hits  hit rate  of the bound", "policy");
    for found in &caches {
        let _ = writeln!(
            text,
            "{:<width$}  {:>8}  {:>8}  {:>8}  {:>7.2}%  {:>11.1}%",
            found.policy,
            found.resident,
            found.requests,
            found.hits,
            100.0 * found.hit_rate,
            100.0 * found.share_of_bound
        );
    }
    if !placements.is_empty() {
        let _ = writeln!(text, "\nplacement    ranks    tokens  rows sent  rows returned  busiest over mean");
    }
    for found in &placements {
        let Spread { placement, ranks, tokens, rows_sent, rows_returned, imbalance } = found;
        let _ = writeln!(
            text,
            "{placement:<11}  {ranks:>5}  {tokens:>8}  {rows_sent:>9}  {rows_returned:>13}  {imbalance:>17.3}"
        );
    }
    Ok(Output::new().text(&text)?)
}

/// Caches of every size and policy.
fn caches(args: &Simulate, layers: usize, experts: usize) -> Result<Vec<Cached>> {
    let uses = Uses::read(args)?;
    let bytes = args.expert_bytes.unwrap_or(1);
    let all = (layers * experts) as u64;
    let sizes = ExpertSizes::equal(layers, experts, bytes)?;
    let budgets = match (args.cache.is_empty(), args.expert_bytes) {
        (true, _) => vec![all / 4, all / 2, 3 * all / 4],
        (false, _) => args.cache.clone(),
    };
    let policies = match args.policy.is_empty() {
        // Without their settings, which have defaults.
        true => CachePolicy::FORMS.iter().filter_map(|form| form.split(':').next()?.parse().ok()).collect(),
        false => args.policy.clone(),
    };
    let mut found = Vec::new();
    for budget in budgets {
        let bound = belady(&sizes, budget, [], uses.iter())?;
        for policy in &policies {
            let mut cache = ExpertCache::new(sizes.clone(), budget, *policy)?;
            let report = simulate(&mut cache, uses.iter())?;
            let total = report.total();
            found.push(Cached {
                policy: policy.to_string(),
                resident: budget / bytes.max(1),
                bytes: budget,
                requests: total.requests,
                hits: total.hits,
                hit_rate: total.hit_rate(),
                bytes_read: total.bytes_read,
                share_of_bound: report.share_of(&bound),
            });
        }
    }
    Ok(found)
}

/// Placements of every kind. A token's home is its sequence modulo the ranks.
fn placements(args: &Simulate, layers: usize, experts: usize, ranks: usize) -> Result<Vec<Spread>> {
    let stats = TraceStats::read(&mut reader(&args.trace)?).map_err(of_file(&args.trace))?;
    let mut load = Vec::new();
    memory::refill(&mut load, layers * experts, 0, "load of a trace")?;
    for (to, layer) in load.chunks_mut(experts.max(1)).zip(&stats.layers) {
        to[..layer.load.len()].copy_from_slice(&layer.load);
    }
    let kinds = [
        ("blocks", Placement::blocks(layers, experts, ranks)?),
        ("round-robin", Placement::round_robin(layers, experts, ranks)?),
        ("by load", Placement::by_load(layers, experts, ranks, &load, 0)?),
    ];
    let mut found = Vec::new();
    for (placement, of_kind) in kinds {
        let mut traffic = Traffic::new(ranks)?;
        let mut batch = Batch::default();
        let mut reader = reader(&args.trace)?;
        let mut route = TokenRoute::default();
        while reader.next(&mut route).map_err(of_file(&args.trace))? {
            if batch.place != Some((route.step, route.layer)) {
                batch.add_to(&mut traffic, &of_kind)?;
                batch.begin(route.step, route.layer);
            }
            batch.push(&route, ranks)?;
        }
        batch.add_to(&mut traffic, &of_kind)?;
        let imbalance = traffic.imbalance();
        let Traffic { tokens, rows_sent, rows_returned, .. } = traffic;
        found.push(Spread { placement, ranks, tokens, rows_sent, rows_returned, imbalance });
    }
    Ok(found)
}

/// The tokens of a pass in a layer.
#[derive(Default)]
struct Batch {
    place: Option<(u32, u16)>,
    /// Position, home, and where the experts end.
    tokens: Vec<(usize, u32, usize)>,
    experts: Vec<u32>,
}

impl Batch {
    fn begin(&mut self, step: u32, layer: u16) {
        self.place = Some((step, layer));
        self.tokens.clear();
        self.experts.clear();
    }

    fn push(&mut self, route: &TokenRoute, ranks: usize) -> Result<()> {
        memory::reserve(&mut self.experts, route.kept.len(), "experts of a pass")?;
        memory::reserve(&mut self.tokens, 1, "tokens of a pass")?;
        self.experts.extend(route.kept.iter().map(|pair| u32::from(pair.expert)));
        let home = (route.sequence as usize % ranks) as u32;
        self.tokens.push((route.position as usize, home, self.experts.len()));
        Ok(())
    }

    fn add_to(&self, traffic: &mut Traffic, placement: &Placement) -> Result<()> {
        let Some((_, layer)) = self.place else { return Ok(()) };
        let mut begin = 0;
        let routes = self.tokens.iter().map(|&(token, home, end)| {
            let experts = &self.experts[std::mem::replace(&mut begin, end)..end];
            Placed { token, home, experts }
        });
        Ok(traffic.add(placement, usize::from(layer), routes)?)
    }
}

impl Uses {
    fn read(args: &Simulate) -> Result<Self> {
        let mut reader = reader(&args.trace)?;
        let (mut uses, mut route) = (Self::default(), TokenRoute::default());
        let mut begin = 0;
        while reader.next(&mut route).map_err(of_file(&args.trace))? {
            let place = (u64::from(route.step), usize::from(route.layer));
            if uses.places.last().map(|&(step, layer, _)| (step, layer)) != Some(place) {
                begin = uses.experts.len();
                memory::reserve(&mut uses.places, 1, "passes of a trace")?;
                uses.places.push((place.0, place.1, begin));
            }
            for pair in &route.kept {
                let expert = u32::from(pair.expert);
                if !uses.experts[begin..].contains(&expert) {
                    memory::reserve(&mut uses.experts, 1, "experts of a trace")?;
                    uses.experts.push(expert);
                }
            }
            if let Some(last) = uses.places.last_mut() {
                last.2 = uses.experts.len();
            }
        }
        if uses.places.is_empty() {
            return Err(Failure::not_as_expected(args.trace.display(), "expected some tokens, found none"));
        }
        Ok(uses)
    }

    fn iter(&self) -> impl Iterator<Item = LayerAccess<'_>> {
        let mut begin = 0;
        self.places.iter().map(move |&(step, layer, end)| {
            let experts = &self.experts[std::mem::replace(&mut begin, end)..end];
            LayerAccess { step, layer, experts }
        })
    }
}
