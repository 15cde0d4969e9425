//! What a layer does beside its experts: routing, gather (what a bank pays that wants its rows side by side) and combine
//! (bringing outputs back to their tokens), each alone, and for many small experts the layer itself, whose time they are a
//! share of. Gather and combine are timed on one thread, and combine also as a layer runs it, on the bank's threads.
//! Throughput counts bytes of rows moved, or tokens.
//!
//! `cargo bench --bench dispatch`

use std::time::Duration;

use benches::{Shape, bank, tokens};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use moe_core::{
    ApplyWeights, Assignments, Dispatch, Experts, RouteInput, Router, RoutingPlan, TokenContext, Workspace,
    combine, combine_from,
};
use moe_kernels::{Backend, Dtype, Linear, LinearScratch};
use moe_router::TopK;
use ndarray::{Array2, ArrayViewMut2};

/// Mixtral's layer, and one of many small experts.
const SHAPES: [Shape; 2] = [
    Shape { dim: 4096, hidden: 14336, experts: 8, chosen: 2 },
    Shape { dim: 2048, hidden: 1408, experts: 64, chosen: 8 },
];

fn dispatch(c: &mut Criterion) {
    for shape in SHAPES {
        parts(c, shape);
    }
    layer(c, SHAPES[1], 512);
}

fn parts(c: &mut Criterion, shape: Shape) {
    let Shape { dim, experts, chosen, .. } = shape;
    let router = TopK::new(chosen).expect("k is at least 1");
    let mut group = c.benchmark_group(format!("dispatch {dim} of {experts} x {chosen}"));
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2)).sample_size(20);
    for count in [1, 32, 512] {
        let logits = tokens(count, experts);
        let input = RouteInput::new(logits.view(), TokenContext::new()).expect("the context fits");
        let (mut assignments, mut plan) = (Assignments::new(), RoutingPlan::new());
        let mut route = |plan: &mut RoutingPlan| {
            assignments.reset(count, experts).expect("few enough");
            router.route(&input, &mut assignments).expect("enough experts");
            plan.seal(&assignments).expect("a valid plan");
        };
        route(&mut plan);
        let x = tokens(count, dim);
        let (mut rows, mut y) = (Array2::zeros((plan.rows(), dim)), Array2::zeros((count, dim)));

        // Weights sum to one, so that moving there and back gives what was there.
        let dispatch = Dispatch::of(&plan, x.view(), ApplyWeights::Output, 0);
        dispatch.gather(0..plan.rows(), rows.view_mut());
        combine(&plan, rows.view(), true, y.view_mut());
        assert!(y.iter().zip(&x).all(|(y, x)| (y - x).abs() <= 1e-6), "what was gathered came back");

        group.throughput(Throughput::Bytes((plan.rows() * dim * size_of::<f32>()) as u64));
        group.bench_function(BenchmarkId::new("gather", count), |b| {
            b.iter(|| dispatch.gather(0..plan.rows(), rows.view_mut()));
        });
        group.bench_function(BenchmarkId::new("combine", count), |b| {
            b.iter(|| combine(&plan, rows.view(), true, y.view_mut()));
        });
        // Its threads do not depend on its weights.
        let small = bank(Shape { hidden: 16, ..shape }, Dtype::Bf16, Backend::best());
        group.bench_function(BenchmarkId::new("combine on the bank's threads", count), |b| {
            b.iter(|| {
                let work = |first: usize, mut y: ArrayViewMut2<'_, f32>| {
                    combine_from(first, &plan, rows.view(), true, y.view_mut());
                    Ok(())
                };
                small.over_rows(y.view_mut(), &work).expect("combining cannot fail");
            });
        });
        let mut plan = RoutingPlan::new();
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new("route", count), |b| b.iter(|| route(&mut plan)));
    }
    group.finish();
}

/// The whole layer.
fn layer(c: &mut Criterion, shape: Shape, count: usize) {
    let mut group = c.benchmark_group(format!("layer {}", shape.name()));
    group.sample_size(10).throughput(Throughput::Elements(shape.flops(count)));
    let layer = benches::layer(shape, Dtype::Bf16, Backend::best());
    let (x, mut y) = (tokens(count, shape.dim), Array2::zeros((count, shape.dim)));
    let mut workspace = Workspace::new();
    group.bench_function(BenchmarkId::from_parameter(count), |b| {
        b.iter(|| {
            layer
                .forward(x.view(), TokenContext::new(), &mut workspace, &mut (), y.view_mut())
                .expect("shapes fit");
        });
    });
    // The gate's product, which is no part of routing.
    let gate = Linear::new(benches::matrix(999, Dtype::Bf16, shape.experts, shape.dim), Backend::best());
    let (mut logits, mut scratch) = (Array2::zeros((count, shape.experts)), LinearScratch::default());
    group.bench_function(BenchmarkId::new("gate", count), |b| {
        b.iter(|| gate.forward(x.view(), &mut scratch, logits.view_mut()).expect("shapes fit"));
    });
    group.finish();
}

criterion_group!(all, dispatch);
criterion_main!(all);
