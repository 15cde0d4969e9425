//! Caches of every size and policy.

use moe_core::expert_cache::{CachePolicy, ExpertCache, ExpertSizes, LayerAccess, belady, simulate};
use moe_core::memory;
use serde::Serialize;

use super::passes::LayerPass;
use crate::args::Simulate;
use crate::failure::{Failure, Result};

#[derive(Serialize)]
pub(super) struct Cached {
    pub(super) policy: String,
    pub(super) resident: u64,
    pub(super) bytes: u64,
    pub(super) requests: u64,
    pub(super) hits: u64,
    pub(super) hit_rate: f64,
    pub(super) bytes_read: u64,
    pub(super) share_of_bound: f64,
}

pub(super) fn caches(args: &Simulate, layers: usize, experts: usize) -> Result<Vec<Cached>> {
    let uses = Uses::read(args)?;
    let bytes = args.expert_bytes.unwrap_or(1);
    let all = (layers * experts) as u64;
    let sizes = ExpertSizes::equal(layers, experts, bytes)?;
    let budgets = match args.cache.is_empty() {
        true => vec![all / 4, all / 2, 3 * all / 4],
        false => args.cache.clone(),
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
                resident: (budget / bytes.max(1)).min(all),
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

/// The distinct experts that passes use, by pass and layer.
#[derive(Default)]
struct Uses {
    /// Pass, layer, and where its experts end.
    places: Vec<(u64, usize, usize)>,
    experts: Vec<u32>,
}

impl Uses {
    fn read(args: &Simulate) -> Result<Self> {
        let mut uses = Self::default();
        LayerPass::each(&args.trace, |pass| {
            let begin = uses.experts.len();
            for expert in pass.kept() {
                if !uses.experts[begin..].contains(expert) {
                    memory::push(&mut uses.experts, *expert, "experts of a trace")?;
                }
            }
            let place = (u64::from(pass.step), usize::from(pass.layer), uses.experts.len());
            Ok(memory::push(&mut uses.places, place, "passes of a trace")?)
        })?;
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
