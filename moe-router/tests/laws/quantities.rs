//! Weights, counts, capacities.

use moe_router::{Capacity, Capped, TopK};
use proptest::prelude::*;

use crate::listed::{batches, config, decisions, route};

/// Bound of |Σ w - 1| for k ≤ 12 weights, one division and one addition for each, in units of 2⁻²⁴: the divisions round k times,
/// the two sums at most k times each, and renormalising does it all again.
const SUM_BOUND: f32 = 2.0 * 3.0 * 12.0 / 16_777_216.0;

proptest! {
    #![proptest_config(config())]

    #[test]
    fn weights_are_finite_not_negative_and_sum_to_one_where_promised(batch in batches()) {
        for listed in batch.routers() {
            let plan = route(&*listed.router, batch.logits.view(), batch.unpadded());
            prop_assert!(plan.row_weights().iter().all(|w| w.is_finite() && *w >= 0.0), "{}", listed.name);
            for t in 0..batch.tokens() {
                let all = Some(plan.choices(t).len()) == listed.k;
                let sum: f32 = plan.choices(t).map(|c| c.weight).sum();
                let one = (sum - 1.0).abs() <= SUM_BOUND;
                prop_assert!(!(listed.sums_to_one && all) || one, "{}: token {t}: {sum}", listed.name);
                prop_assert!(sum <= listed.most * (1.0 + SUM_BOUND), "{}: token {t}: {sum}", listed.name);
            }
        }
    }

    #[test]
    fn kept_and_refused_are_what_was_asked_for(batch in batches()) {
        for listed in batch.routers() {
            let Some(k) = listed.k else { continue };
            let plan = route(&*listed.router, batch.logits.view(), batch.unpadded());
            prop_assert_eq!(plan.rows() + plan.refused().len(), batch.tokens() * k, "{}", listed.name);
            for t in 0..batch.tokens() {
                let ranks: Vec<_> = decisions(&plan, t).into_iter().map(|d| d.0).collect();
                prop_assert_eq!(ranks, (0..k).collect::<Vec<_>>(), "{}: token {}", listed.name, t);
            }
        }
    }

    #[test]
    fn no_expert_is_above_its_capacity_and_expert_choice_fills_it(batch in batches()) {
        for listed in batch.routers() {
            let Some(capacity) = listed.capacity else { continue };
            let plan = route(&*listed.router, batch.logits.view(), batch.padded());
            for tokens in batch.sequences() {
                let present = tokens.clone().filter(|&t| !batch.padding[t]).count();
                if present == 0 {
                    continue;
                }
                let choices = present * listed.k.unwrap_or(1);
                let places = capacity.places(present, choices, batch.experts()).unwrap();
                for e in 0..batch.experts() {
                    let rows = &plan.row_tokens()[plan.expert_rows(e)];
                    let load = rows.iter().filter(|&&t| tokens.contains(&(t as usize))).count();
                    if listed.k.is_none() {
                        prop_assert_eq!(load, places.min(present), "{}: expert {}", listed.name, e);
                    }
                    prop_assert!(load <= places, "{}: expert {e}: {load} of {places}", listed.name);
                }
            }
        }
    }

    #[test]
    fn capacity_turns_away_only_where_it_is_full(batch in batches()) {
        let k = 2.min(batch.experts());
        let (inner, capacity) = (TopK::new(k).unwrap(), Capacity::absolute(3));
        let asked = route(&inner, batch.logits.view(), batch.unpadded());
        let capped = route(&Capped::new(inner, capacity).unwrap(), batch.logits.view(), batch.unpadded());
        for tokens in batch.sequences() {
            for e in 0..batch.experts() {
                let load = |plan: &moe_core::RoutingPlan| {
                    let rows = &plan.row_tokens()[plan.expert_rows(e)];
                    rows.iter().filter(|&&t| tokens.contains(&(t as usize))).count()
                };
                prop_assert_eq!(load(&capped), load(&asked).min(3));
            }
        }
        // What is kept is what was asked for, rank and weight included.
        for t in 0..batch.tokens() {
            let asked = decisions(&asked, t);
            for (found, asked) in decisions(&capped, t).iter().zip(&asked) {
                prop_assert_eq!((found.0, found.1), (asked.0, asked.1));
                prop_assert!(found.2.is_none() || found.2 == asked.2);
            }
        }
    }
}
