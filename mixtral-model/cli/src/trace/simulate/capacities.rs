//! What capacities would have turned away.

use moe_core::{TokenContext, memory};
use moe_router::Capacity;
use moe_router::metrics::capacity_sweep;
use serde::Serialize;

use super::passes::LayerPass;
use crate::args::Simulate;
use crate::failure::Result;

#[derive(Serialize)]
pub(super) struct Capacitated {
    pub(super) factor: f64,
    pub(super) requested: u64,
    pub(super) dropped: u64,
    pub(super) drop_rate: f64,
    pub(super) tokens_without: u64,
}

/// Every factor, for each sequence of a pass in a layer by itself.
pub(super) fn capacities(args: &Simulate, experts: &[u16]) -> Result<Vec<Capacitated>> {
    let none =
        |&factor: &f64| Capacitated { factor, requested: 0, dropped: 0, drop_rate: 0.0, tokens_without: 0 };
    let mut found: Vec<_> = args.capacity.iter().map(none).collect();
    let (mut choices, mut offsets) = (Vec::new(), Vec::new());
    LayerPass::each(&args.trace, |pass| {
        choices.clear();
        offsets.clear();
        let mut before = None;
        for (t, (token, experts)) in pass.asked_by_token().enumerate() {
            if before.replace(token.sequence) != Some(token.sequence) {
                memory::push(&mut offsets, t, "sequences of a pass")?;
            }
            memory::reserve(&mut choices, experts.len(), "choices of a pass")?;
            choices.extend(experts.iter().map(|&expert| (t as u32, expert)));
        }
        memory::push(&mut offsets, pass.tokens.len(), "sequences of a pass")?;
        let context = TokenContext::new().with_sequences(&offsets);
        let capacities = args.capacity.iter().map(|&factor| Capacity::factor_of_choices(factor));
        let experts = usize::from(experts[usize::from(pass.layer)]);
        let dropped = capacity_sweep(&choices, pass.tokens.len(), experts, context, capacities)?;
        for (sum, of_pass) in found.iter_mut().zip(&dropped) {
            sum.requested += of_pass.requested as u64;
            sum.dropped += of_pass.dropped as u64;
            sum.tokens_without += of_pass.tokens_without as u64;
        }
        Ok(())
    })?;
    for sum in &mut found {
        sum.drop_rate = if sum.requested == 0 { 0.0 } else { sum.dropped as f64 / sum.requested as f64 };
    }
    Ok(found)
}
