//! A sparse layer against dense ones of equal active and of equal total parameters.
//!
//! `cargo bench` runs a quick set; a filter such as `cargo bench -- 1024x3584` picks from it. Throughput counts useful
//! floating-point operations of the sparse layer, so that bars of one group compare.

use std::time::Duration;

use benches::{Shape, bank, dense, layer, tokens};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use moe_core::{MoeLayer, Scratch, TokenContext, Workspace};
use moe_kernels::{Backend, Dtype};
use ndarray::Array2;

const SHAPES: [Shape; 2] = [
    Shape { dim: 256, hidden: 128, experts: 8, chosen: 2 },
    Shape { dim: 1024, hidden: 3584, experts: 8, chosen: 2 },
];
const TOKENS: [usize; 3] = [1, 32, 256];

fn forward(layer: &MoeLayer, x: &Array2<f32>, workspace: &mut Workspace, y: &mut Array2<f32>) {
    layer
        .forward(x.view(), TokenContext::new(), workspace, &mut (), y.view_mut())
        .expect("finite and of fitting shapes");
}

fn sparse_vs_dense(c: &mut Criterion) {
    for shape in SHAPES {
        let mut group = c.benchmark_group(shape.name());
        group
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(2))
            .sample_size(10);
        let backend = Backend::best();
        let sparse = layer(shape, Dtype::Bf16, backend);
        let definition = layer(shape, Dtype::Bf16, Backend::portable());
        let rivals = [
            ("dense of equal active", bank(shape.dense_of_equal_active(), Dtype::Bf16, backend)),
            ("dense of equal total", bank(shape.dense_of_equal_total(), Dtype::Bf16, backend)),
        ];
        for count in TOKENS {
            let x = tokens(count, shape.dim);
            let (mut y, mut workspace, mut scratch) =
                (Array2::zeros(x.dim()), Workspace::new(), Scratch::default());

            // One token by the portable definition: what is timed computes the right bits.
            forward(&sparse, &x, &mut workspace, &mut y);
            let one = x.slice(ndarray::s![..1, ..]).to_owned();
            let mut expected = Array2::zeros(one.dim());
            forward(&definition, &one, &mut Workspace::new(), &mut expected);
            assert_eq!(y.row(0), expected.row(0), "{} {backend}", shape.name());

            group.throughput(Throughput::Elements(shape.flops(count)));
            group.bench_function(BenchmarkId::new("sparse", count), |b| {
                b.iter(|| forward(&sparse, &x, &mut workspace, &mut y));
            });
            for (name, bank) in &rivals {
                group.bench_function(BenchmarkId::new(*name, count), |b| {
                    b.iter(|| dense(bank, x.view(), &mut scratch, y.view_mut()));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(all, sparse_vs_dense);
criterion_main!(all);
