//! Rounding rows of weights to blocks, each type that can be made, on one thread. Throughput counts weights.
//!
//! `cargo bench --bench quantise`

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use moe_core::numerics::uniform;
use moe_kernels::BlockType;

/// A row of Mixtral's.
const COLUMNS: usize = 4096;

fn quantise(c: &mut Criterion) {
    // Sums of four uniform numbers: near enough to normal ones, as weights are.
    let value = |i| (0..4).map(|j| uniform(j, &[i]) - 0.5).sum::<f32>() / 64.0;
    let row: Vec<f32> = (0..COLUMNS as u64).map(value).collect();
    let mut group = c.benchmark_group("quantise");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2)).sample_size(20);
    group.throughput(Throughput::Elements(COLUMNS as u64));
    for ty in BlockType::ALL.iter().filter(|ty| ty.can_be_made()) {
        let mut bytes = vec![0; ty.row_bytes(COLUMNS).expect("a whole number of blocks")];
        let mut widened = vec![0.0; COLUMNS];
        ty.quantise_row(&row, None, &mut bytes).expect("the row fits");
        ty.dequantise_row(&bytes, &mut widened).expect("the row fits");
        let squares = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        // Even two bits a weight take away most of the variance.
        assert!(squares(&row, &widened) < 0.25 * squares(&row, &vec![0.0; COLUMNS]), "{}", ty.name());
        group.bench_function(ty.name(), |b| {
            b.iter(|| ty.quantise_row(&row, None, &mut bytes).expect("the row fits"));
        });
    }
    group.finish();
}

criterion_group!(all, quantise);
criterion_main!(all);
