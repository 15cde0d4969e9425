//! The demo model: reading a prompt, and a token at a time. Throughput counts tokens.
//!
//! `cargo bench --bench model`

use std::path::Path;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mixtral_model::{Access, Checkpoint, Config, Model, SessionOptions, Step, Workspace};
use moe_kernels::Backend;

fn model(c: &mut Criterion) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mixtral-model/cli/demo");
    let load = |backend| {
        let checkpoint = Checkpoint::open(&dir, Access::Map).expect("the demo is there");
        Model::load(Config::from_dir(&dir).expect("the demo is there"), &checkpoint, backend)
            .expect("and whole")
    };
    let (model, definition) = (load(Backend::best()), load(Backend::portable()));
    let ids: Vec<u32> = (0..256).map(|i| 3 + i * 7 % 2000).collect();
    let last = |model: &Model, pieces: &[&[u32]], workspace: &mut Workspace| -> Vec<f32> {
        let mut session = model.session(SessionOptions::default()).expect("within the context");
        let mut row = Vec::new();
        for ids in pieces {
            let logits = model.forward(&mut [Step::new(&mut session, ids)], workspace, &mut ());
            row = logits.expect("finite").row(0).to_vec();
        }
        row
    };
    let mut workspace = Workspace::new();
    let mut group = c.benchmark_group("demo model");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2)).sample_size(10);
    for count in [1, 16, 64, 256] {
        let ids = &ids[..count];
        let one_by_one: Vec<&[u32]> = ids.chunks(1).collect();
        // The same bits in one pass, a token at a time, and by the portable definition.
        let expected = last(&definition, &[&ids[..count.min(16)]], &mut workspace);
        assert_eq!(last(&model, &[&ids[..count.min(16)]], &mut workspace), expected);
        assert_eq!(last(&model, &one_by_one, &mut workspace), last(&model, &[ids], &mut workspace));
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new("prompt", count), |b| {
            b.iter(|| last(&model, &[ids], &mut workspace));
        });
        group.bench_function(BenchmarkId::new("a token at a time", count), |b| {
            b.iter(|| last(&model, &one_by_one, &mut workspace));
        });
    }
    group.finish();
}

criterion_group!(all, model);
criterion_main!(all);
