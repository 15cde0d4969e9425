//! One layer's attention over a cache, of Mixtral's shape: 32 query heads of 128 in groups of four. Throughput counts
//! floating-point operations of scores and weighted values.
//!
//! `cargo bench --bench attention`

use std::time::Duration;

use benches::tokens;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use moe_kernels::attention::{AttentionScratch, AttentionShape, KvRows, attend};
use moe_kernels::{Backend, Dtype, narrow_row};
use ndarray::{Array2, s};

const SHAPE: AttentionShape =
    AttentionShape { heads: 32, kv_heads: 8, head_dim: 128, scale: 0.088_388_35, window: None };

fn attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention 32 x 128");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2)).sample_size(10);
    // Queries, and positions before them.
    for (count, before) in [(1, 1023), (1, 4095), (128, 0), (512, 0), (128, 3968)] {
        let capacity = before + count;
        let rows = tokens(2 * SHAPE.kv_heads * capacity, SHAPE.head_dim);
        let mut bytes = vec![0; rows.len() * Dtype::F32.bytes()];
        narrow_row(Dtype::F32, rows.as_slice().expect("in one piece"), &mut bytes);
        let (keys, values) = bytes.split_at(bytes.len() / 2);
        let kv = KvRows { keys, values, dtype: Dtype::F32, capacity };
        let q = tokens(count, SHAPE.heads * SHAPE.head_dim);
        let (mut scratch, mut y) = (AttentionScratch::default(), Array2::zeros(q.dim()));

        // The first query by the portable definition: what is timed computes the right bits.
        let mut expected = Array2::zeros((1, q.ncols()));
        let one = q.slice(s![..1, ..]);
        attend(Backend::portable(), &SHAPE, one, before, kv, &mut scratch, expected.view_mut())
            .expect("memory");
        let mut run = || {
            attend(Backend::best(), &SHAPE, q.view(), before, kv, &mut scratch, y.view_mut()).expect("memory")
        };
        run();
        let visible: usize = (0..count).map(|t| before + t + 1).sum();
        group.throughput(Throughput::Elements((4 * SHAPE.heads * SHAPE.head_dim * visible) as u64));
        group.bench_function(BenchmarkId::new(format!("{count} after"), before), |b| b.iter(&mut run));
        assert_eq!(y.row(0), expected.row(0));
    }
    group.finish();
}

criterion_group!(all, attention);
criterion_main!(all);
