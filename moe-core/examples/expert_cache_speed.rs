//! Requests a second of the expert cache, for each policy, and of Belady's bound, on a made-up trace with the geometry of Mixtral or of a
//! model with many small experts: `cargo run --release --example expert_cache_speed`.
#![allow(clippy::unwrap_used, reason = "a program that has nothing to fail on")]

use std::time::Instant;

use moe_core::expert_cache::{CachePolicy, ExpertCache, ExpertSizes, LayerAccess, belady, simulate};

fn main() {
    for (layers, experts, k, steps) in [(32, 8, 2, 20_000), (48, 128, 8, 3_000), (60, 512, 10, 2_000)] {
        // Each token keeps some experts of the one before, and draws the others, low ones more often.
        let mut state = 1u64;
        let mut draw = |n: usize| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            ((state >> 33) % n as u64) as usize
        };
        let mut plans = vec![vec![]; layers];
        let mut trace: Vec<(u64, usize, Vec<u32>)> = vec![];
        for step in 0..steps {
            for (layer, plan) in plans.iter_mut().enumerate() {
                plan.retain(|_| draw(3) == 0);
                while plan.len() < k {
                    let expert = draw(experts).min(draw(experts)) as u32;
                    if !plan.contains(&expert) {
                        plan.push(expert);
                    }
                }
                let mut sorted = plan.clone();
                sorted.sort_unstable();
                trace.push((step, layer, sorted));
            }
        }
        let trace =
            || trace.iter().map(|(step, layer, experts)| LayerAccess { step: *step, layer: *layer, experts });
        println!("{layers} layers, {k} of {experts} experts, a third of them resident");
        let sizes = ExpertSizes::equal(layers, experts, 1000).unwrap();
        let budget = sizes.total() / 3;
        let show = |name: String, start: Instant, requests: u64, rate: f64| {
            let millions = requests as f64 / start.elapsed().as_secs_f64() / 1e6;
            println!("  {name:22} {:5.1} % hits {millions:6.1} million requests a second", 100.0 * rate);
        };
        for form in CachePolicy::FORMS {
            let policy = form.replace("STEPS", "64").parse().unwrap();
            let mut cache = ExpertCache::new(sizes.clone(), budget, policy).unwrap();
            let start = Instant::now();
            let total = simulate(&mut cache, trace()).unwrap().total();
            show(policy.to_string(), start, total.requests, total.hit_rate());
        }
        let start = Instant::now();
        let total = belady(&sizes, budget, [], trace()).unwrap().total();
        show("belady".into(), start, total.requests, total.hit_rate());
    }
}
