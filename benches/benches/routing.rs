//! Routing alone: logits in, sealed plan out, 4,096 tokens over 64 experts. Throughput counts tokens.
//!
//! `cargo bench --bench routing`

use std::time::Duration;

use benches::tokens;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use moe_core::{Assignments, RouteInput, Router, RoutingPlan, TokenContext};
use moe_router::{Capacity, Capped, ExpertChoice, Normalization, TopK};

const TOKENS: usize = 4096;
const EXPERTS: usize = 64;

fn routing(c: &mut Criterion) {
    let logits = tokens(TOKENS, EXPERTS);
    let top = |k| TopK::new(k).expect("k is at least 1");
    let room = Capacity::factor_of_choices(1.0);
    let routers: [(&str, Box<dyn Router>); 5] = [
        ("top-2", Box::new(top(2))),
        ("top-8", Box::new(top(8))),
        ("top-8, softmax over all", Box::new(top(8).normalized(Normalization::OverAll))),
        ("top-2 capped", Box::new(Capped::new(top(2), room).expect("a valid capacity"))),
        (
            "expert choice",
            Box::new(ExpertChoice::new(Capacity::factor_of_tokens(2.0)).expect("a valid capacity")),
        ),
    ];
    let mut group = c.benchmark_group("routing 4096 x 64");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2)).sample_size(20);
    group.throughput(Throughput::Elements(TOKENS as u64));
    for (name, router) in routers {
        let (mut assignments, mut plan) = (Assignments::new(), RoutingPlan::new());
        let mut route = || {
            let input = RouteInput::new(logits.view(), TokenContext::new()).expect("the context fits");
            assignments.reset(TOKENS, EXPERTS).expect("few enough");
            router.route(&input, &mut assignments).expect("enough experts");
            plan.seal(&assignments).expect("a valid plan");
            plan.rows() + plan.refused().len()
        };
        // Every router here makes at least two choices a token.
        assert!(route() >= 2 * TOKENS, "{name}");
        group.bench_function(name, |b| b.iter(&mut route));
    }
    group.finish();
}

criterion_group!(all, routing);
criterion_main!(all);
