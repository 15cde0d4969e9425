//! Gather and combine alone: what a bank pays that wants its rows side by side, and what bringing outputs back to their
//! tokens costs beside the experts. Throughput counts bytes
//! of rows moved.
//!
//! `cargo bench --bench dispatch`

use std::time::Duration;

use benches::tokens;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use moe_core::{ApplyWeights, Assignments, Dispatch, RouteInput, Router, RoutingPlan, TokenContext, combine};
use moe_router::TopK;
use ndarray::Array2;

const DIM: usize = 4096;
const EXPERTS: usize = 8;

fn dispatch(c: &mut Criterion) {
    let router = TopK::new(2).expect("k is at least 1");
    let mut group = c.benchmark_group("dispatch 4096 of 8 x 2");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2)).sample_size(20);
    for count in [1, 32, 512] {
        let logits = tokens(count, EXPERTS);
        let input = RouteInput::new(logits.view(), TokenContext::new()).expect("the context fits");
        let (mut assignments, mut plan) = (Assignments::new(), RoutingPlan::new());
        assignments.reset(count, EXPERTS).expect("few enough");
        router.route(&input, &mut assignments).expect("enough experts");
        plan.seal(&assignments).expect("a valid plan");
        let x = tokens(count, DIM);
        let (mut rows, mut y) = (Array2::zeros((plan.rows(), DIM)), Array2::zeros((count, DIM)));

        // Weights sum to one, so that moving there and back gives what was there.
        let dispatch = Dispatch::of(&plan, x.view(), ApplyWeights::Output, 0);
        dispatch.gather(0..plan.rows(), rows.view_mut());
        combine(&plan, rows.view(), true, y.view_mut());
        assert!(y.iter().zip(&x).all(|(y, x)| (y - x).abs() <= 1e-6), "what was gathered came back");

        group.throughput(Throughput::Bytes((plan.rows() * DIM * size_of::<f32>()) as u64));
        group.bench_function(BenchmarkId::new("gather", count), |b| {
            b.iter(|| dispatch.gather(0..plan.rows(), rows.view_mut()));
        });
        group.bench_function(BenchmarkId::new("combine", count), |b| {
            b.iter(|| combine(&plan, rows.view(), true, y.view_mut()));
        });
    }
    group.finish();
}

criterion_group!(all, dispatch);
criterion_main!(all);
