//! Files that other people wrote, under a budget of memory: what is computed is what is computed without one.

use std::fs;
use std::path::PathBuf;

use mixtral_model::{Access, Compute, Loader, MemoryPlan, MemoryUse, Model, Source};
use moe_kernels::{Activations, Backend};

use crate::support::{fixtures, logits};

/// GGUF files of all types, with experts stacked and one by one, and directories of the hub's.
fn sources() -> Vec<PathBuf> {
    let within =
        |folder: &str| fs::read_dir(fixtures().join(folder)).unwrap().flatten().map(|entry| entry.path());
    let gguf = within("gguf").filter(|path| path.extension().is_some_and(|end| end == "gguf"));
    let mut all: Vec<_> = gguf.chain(within("models").filter(|path| path.is_dir())).collect();
    all.sort();
    all
}

#[test]
fn the_same_bits_of_every_file() {
    let sources = sources();
    assert!(sources.len() >= 26, "{sources:?}");
    let mut int8 = 0;
    for path in sources {
        let source = Source::find(&path).unwrap();
        let config = source.config().unwrap();
        let ids: Vec<u32> = (0..24).map(|n| n * 37 % config.vocab_size as u32).collect();
        for activations in [Activations::F32, Activations::Int8] {
            let compute = Compute { backend: Backend::best(), activations };
            let whole =
                Model::load(config.clone(), &source.checkpoint(Access::Map).unwrap(), compute).unwrap();
            if activations == Activations::Int8 && whole.products().int8 == 0 {
                continue;
            }
            int8 += usize::from(activations == Activations::Int8);
            let checkpoint = source.checkpoint(Access::Uncached).unwrap();
            let mut plan = MemoryPlan::new(&config, &checkpoint, &MemoryUse::default(), 1 << 40).unwrap();
            for experts in [0, 3 * plan.largest_expert, plan.all_experts] {
                plan.experts = experts;
                let model =
                    Loader::new(config.clone(), &checkpoint, compute).within(&plan).unwrap().load().unwrap();
                let bits = |model: &Model| {
                    logits(model, &ids, &[20, 1, 3], &mut ()).iter().map(|l| l.to_bits()).collect::<Vec<_>>()
                };
                assert_eq!(bits(&model), bits(&whole), "{} {activations} {experts}", path.display());
                assert_eq!(model.products(), whole.products());
                let found = model.expert_cache().unwrap();
                assert!(found.reads > 0 && found.peak <= experts, "{found:?}");
            }
        }
    }
    assert!(int8 >= 12, "{int8}");
}
