//! Times a bank of experts of Mixtral's size against this machine's limits, which are measured between the rounds.
//!
//! `cargo run --release -p moe-kernels --example speed -- 1,8,32,128,512 bf16 avx2`

use std::time::Instant;

use moe_core::{Experts, GroupedRows, Scratch};
use moe_kernels::{Backend, Dtype, SwiGluExperts, SwiGluWeights, WeightMatrix, limits};
use ndarray::Array2;

const DIM: usize = 4096;
const HIDDEN: usize = 14336;
const EXPERTS: usize = 8;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let tokens: Vec<usize> =
        args.first().map_or("1,128", |s| s).split(',').filter_map(|n| n.parse().ok()).collect();
    let dtype = match args.get(1).map(String::as_str) {
        Some("f32") => Dtype::F32,
        Some("f16") => Dtype::F16,
        _ => Dtype::Bf16,
    };
    let backend: Backend =
        args.get(2).map_or(Ok(Backend::best()), |name| name.parse()).expect("a backend of this machine");
    let activations: moe_kernels::Activations =
        args.get(3).map_or(Ok(Default::default()), |n| n.parse()).expect("f32 or bf16");
    let matrix = |seed: usize, rows: usize, columns: usize| {
        let values: Vec<f32> =
            (0..rows * columns).map(|i| ((i * 31 + seed * 7) % 255) as f32 / 8192.0 - 0.0155).collect();
        WeightMatrix::rounded(&values, dtype, rows, columns).expect("shape fits")
    };
    let weights: Vec<_> = (0..EXPERTS)
        .map(|e| SwiGluWeights {
            w1: matrix(e, HIDDEN, DIM),
            w2: matrix(e, DIM, HIDDEN),
            w3: matrix(e, HIDDEN, DIM),
        })
        .collect();
    let memory = weights[0].w1.clone();
    let experts = SwiGluExperts::new(weights, backend).expect("shapes fit").with_activations(activations);
    let mut scratch = Scratch::default();
    println!("{dtype} weights, {backend}, {} threads", rayon::current_num_threads());
    for t in tokens {
        let rows = 2 * t;
        let x = Array2::from_shape_fn((rows, DIM), |(r, c)| ((r * 13 + c * 7) % 101) as f32 / 50.0 - 1.0);
        let mut out = Array2::zeros((rows, DIM));
        let (mut times, mut peaks, mut reads) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..if t < 64 { 9 } else { 3 } {
            peaks.push(limits::fma_peak(backend, activations));
            reads.push(limits::read_bandwidth(backend, memory.bytes()));
            // One token goes to two experts, others in turn; many go to all evenly.
            let offsets: Vec<usize> = (0..=EXPERTS)
                .map(|e| match t {
                    1 => usize::from(e > 2 * round % 8) + usize::from(e > 2 * round % 8 + 1),
                    _ => e * rows / EXPERTS,
                })
                .collect();
            let grouped = GroupedRows::new(x.view(), &offsets).expect("offsets ascend");
            let begun = Instant::now();
            experts.forward(grouped, &mut scratch, out.view_mut()).expect("shapes fit");
            times.push(begun.elapsed().as_secs_f64());
        }
        let (time, peak, read) = (median(times), median(peaks), median(reads));
        let flops = 6.0 * (DIM * HIDDEN * rows) as f64 / time;
        let bytes = (rows.min(EXPERTS) * 3 * DIM * HIDDEN * dtype.bytes()) as f64 / time;
        println!(
            "{t:>4} tokens: {:8.2} ms, {:6.1} GFLOP/s = {:3.0} % of {:.0}, {:5.1} GB/s = {:3.0} % of {:.1}",
            time * 1e3,
            flops / 1e9,
            100.0 * flops / peak,
            peak / 1e9,
            bytes / 1e9,
            100.0 * bytes / read,
            read / 1e9
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
