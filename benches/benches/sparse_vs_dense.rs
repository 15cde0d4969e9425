//! A sparse layer against dense ones of equal active and of equal total parameters.
//!
//! `cargo bench --bench sparse_vs_dense` runs a quick set; a filter such as `-- 1024x3584` picks from it, and a filter that
//! begins with `full`, as in `-- full/4096`, picks from all shapes and batch sizes. Throughput counts useful floating-point
//! operations of the sparse layer, so that bars of one group compare.

use std::time::Duration;

use benches::{Shape, bank, dense, layer, tokens};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use moe_core::{MoeLayer, Scratch, TokenContext, Workspace};
use moe_kernels::{Backend, Dtype};
use ndarray::Array2;

const QUICK: [Shape; 2] = [shape(256, 128, 8, 2), shape(1024, 3584, 8, 2)];
const QUICK_TOKENS: [usize; 3] = [1, 32, 256];

const FULL: [Shape; 10] = [
    shape(256, 128, 8, 2),
    shape(1024, 3584, 8, 1),
    shape(1024, 3584, 8, 2),
    shape(1024, 3584, 8, 4),
    shape(1024, 1792, 16, 4),
    shape(1024, 896, 32, 4),
    shape(1024, 896, 64, 4),
    shape(2048, 1024, 64, 4),
    shape(2048, 7168, 8, 2),
    shape(4096, 14336, 8, 2),
];
const FULL_TOKENS: [usize; 8] = [1, 2, 4, 8, 32, 128, 512, 2048];

const fn shape(dim: usize, hidden: usize, experts: usize, chosen: usize) -> Shape {
    Shape { dim, hidden, experts, chosen }
}

fn forward(layer: &MoeLayer, x: &Array2<f32>, workspace: &mut Workspace, y: &mut Array2<f32>) {
    layer
        .forward(x.view(), TokenContext::new(), workspace, &mut (), y.view_mut())
        .expect("finite and of fitting shapes");
}

fn sparse_vs_dense(c: &mut Criterion) {
    // The filter, as criterion sees it: shapes that it leaves out are not even made.
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let full = filter.strip_prefix("full");
    let (shapes, counts): (&[Shape], &[usize]) =
        if full.is_some() { (&FULL, &FULL_TOKENS) } else { (&QUICK, &QUICK_TOKENS) };
    for &shape in shapes {
        let name = if full.is_some() { format!("full/{}", shape.name()) } else { shape.name() };
        let wanted = filter.split('/').take(1 + usize::from(full.is_some())).collect::<Vec<_>>().join("/");
        if !name.contains(&wanted) {
            continue;
        }
        let mut group = c.benchmark_group(name);
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
        for &count in counts {
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
