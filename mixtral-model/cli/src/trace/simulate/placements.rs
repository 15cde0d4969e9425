//! Placements of every kind.

use moe_core::memory;
use moe_core::placement::{Placement, TokenRoute, Traffic};
use moe_router::trace::TraceStats;
use serde::Serialize;

use super::super::{of_file, reader};
use super::passes::LayerPass;
use crate::args::Simulate;
use crate::failure::Result;

#[derive(Serialize)]
pub(super) struct Spread {
    pub(super) placement: &'static str,
    pub(super) ranks: usize,
    pub(super) tokens: u64,
    pub(super) rows_sent: u64,
    pub(super) rows_returned: u64,
    pub(super) imbalance: f64,
}

/// A token's home is its sequence modulo the ranks.
pub(super) fn placements(
    args: &Simulate,
    layers: usize,
    experts: usize,
    ranks: usize,
) -> Result<Vec<Spread>> {
    let stats = TraceStats::read(&mut reader(&args.trace)?).map_err(of_file(&args.trace))?;
    let mut load = Vec::new();
    memory::refill(&mut load, layers * experts, 0, "load of a trace")?;
    for (to, layer) in load.chunks_mut(experts.max(1)).zip(&stats.layers) {
        let counts = layer.load.counts();
        to[..counts.len()].copy_from_slice(counts);
    }
    let kinds = [
        ("blocks", Placement::blocks(layers, experts, ranks)?),
        ("round-robin", Placement::round_robin(layers, experts, ranks)?),
        ("by load", Placement::by_load(layers, experts, ranks, &load, 0)?),
    ];
    let mut found = Vec::new();
    for (placement, of_kind) in kinds {
        let mut traffic = Traffic::new(ranks)?;
        LayerPass::each(&args.trace, |pass| {
            let routes = pass.kept_by_token().map(|(token, experts)| TokenRoute {
                token: token.position as usize,
                home: (token.sequence as usize % ranks) as u32,
                experts,
            });
            Ok(traffic.add(&of_kind, usize::from(pass.layer), routes)?)
        })?;
        let imbalance = traffic.imbalance();
        let Traffic { tokens, rows_sent, rows_returned, .. } = traffic;
        found.push(Spread { placement, ranks, tokens, rows_sent, rows_returned, imbalance });
    }
    Ok(found)
}
