//! `mixtral trace simulate`.

mod caches;
mod capacities;
mod passes;
mod placements;

use std::fmt::Write as _;

use serde_json::json;

use super::reader;
use crate::args::Simulate;
use crate::failure::Result;
use crate::output::Output;
use caches::Cached;
use capacities::Capacitated;
use placements::Spread;

pub(super) fn run(args: &Simulate) -> Result<()> {
    let of_layers = reader(&args.trace)?.header().experts.clone();
    let (layers, experts) = (of_layers.len(), of_layers.iter().copied().max().unwrap_or(0).into());
    let others = args.ranks.is_some() || !args.capacity.is_empty();
    let caches = match others && args.cache.is_empty() && args.policy.is_empty() {
        true => Vec::new(),
        false => caches::caches(args, layers, experts)?,
    };
    let placements = match args.ranks {
        Some(ranks) => placements::placements(args, layers, experts, ranks.get())?,
        None => Vec::new(),
    };
    let capacities = match args.capacity.is_empty() {
        false => capacities::capacities(args, &of_layers)?,
        true => Vec::new(),
    };
    let text = match args.json {
        true => {
            format!("{}\n", json!({ "caches": caches, "placements": placements, "capacities": capacities }))
        }
        false => tables(&caches, &placements, &capacities),
    };
    Ok(Output::new().text(&text)?)
}

fn tables(caches: &[Cached], placements: &[Spread], capacities: &[Capacitated]) -> String {
    // Writing to a string cannot fail.
    let mut parts = Vec::new();
    if !caches.is_empty() {
        let width = caches.iter().map(|found| found.policy.len()).max().unwrap_or(0).max("policy".len());
        let mut text =
            format!("{:<width$}  resident  requests      hits  hit rate  of the bound\n", "policy");
        for found in caches {
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
        parts.push(text);
    }
    if !placements.is_empty() {
        let mut text =
            "placement    ranks    tokens  rows sent  rows returned  busiest over mean\n".to_owned();
        for found in placements {
            let Spread { placement, ranks, tokens, rows_sent, rows_returned, imbalance } = found;
            let _ = writeln!(
                text,
                "{placement:<11}  {ranks:>5}  {tokens:>8}  {rows_sent:>9}  {rows_returned:>13}  {imbalance:>17.3}"
            );
        }
        parts.push(text);
    }
    if !capacities.is_empty() {
        let mut text = "capacity  requested   dropped  drop rate  tokens without\n".to_owned();
        for found in capacities {
            let Capacitated { factor, requested, dropped, drop_rate, tokens_without } = found;
            let _ = writeln!(
                text,
                "{factor:>8}  {requested:>9}  {dropped:>8}  {:>8.2}%  {tokens_without:>14}",
                100.0 * drop_rate
            );
        }
        parts.push(text);
    }
    parts.join("\n")
}
