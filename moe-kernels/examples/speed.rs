//! Times a bank of Mixtral's size: `cargo run --release -p moe-kernels --example speed -- 1,32,128,512 bf16`.

use std::time::Instant;

use moe_core::{Experts, GroupedRows, Scratch};
use moe_kernels::{Backend, Dtype, SwiGluExperts, SwiGluWeights, WeightMatrix};
use ndarray::Array2;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let tokens: Vec<usize> =
        args.first().map_or("1,128", |s| s).split(',').filter_map(|n| n.parse().ok()).collect();
    let dtype = match args.get(1).map(String::as_str) {
        Some("f32") => Dtype::F32,
        Some("f16") => Dtype::F16,
        _ => Dtype::Bf16,
    };
    let (dim, hidden, count) = (4096, 14336, 8);
    let matrix = |seed: usize, rows: usize, columns: usize| {
        let values: Vec<f32> =
            (0..rows * columns).map(|i| ((i * 31 + seed * 7) % 255) as f32 / 8192.0 - 0.0155).collect();
        WeightMatrix::rounded(&values, dtype, rows, columns).expect("shape fits")
    };
    let weights = (0..count)
        .map(|e| SwiGluWeights {
            w1: matrix(e, hidden, dim),
            w2: matrix(e, dim, hidden),
            w3: matrix(e, hidden, dim),
        })
        .collect();
    let experts = SwiGluExperts::new(weights, Backend::best()).expect("shapes fit");
    let mut scratch = Scratch::default();
    for t in tokens {
        let rows = 2 * t;
        let x = Array2::from_shape_fn((rows, dim), |(r, c)| ((r * 13 + c * 7) % 101) as f32 / 50.0 - 1.0);
        let mut out = Array2::zeros((rows, dim));
        let mut times = Vec::new();
        for round in 0..if t < 64 { 9 } else { 3 } {
            // One token goes to two experts that are not in the caches.
            let offsets: Vec<usize> = (0..=count)
                .map(|e| {
                    if t == 1 {
                        (e > 2 * round % 8) as usize + (e > (2 * round + 1) % 8) as usize
                    } else {
                        e * rows / count
                    }
                })
                .collect();
            let start = Instant::now();
            let grouped = GroupedRows::new(x.view(), &offsets).expect("offsets ascend");
            experts.forward(grouped, &mut scratch, out.view_mut()).expect("shapes fit");
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let time = times[times.len() / 2];
        let flops = 6.0 * dim as f64 * hidden as f64 * rows as f64;
        let touched = rows.min(count) as f64 * 3.0 * (dim * hidden * dtype.bytes()) as f64;
        println!(
            "{t} tokens {dtype}: {:.2} ms, {:.1} GFLOP/s, {:.1} GB/s",
            time * 1e3,
            flops / time / 1e9,
            touched / time / 1e9
        );
    }
}
