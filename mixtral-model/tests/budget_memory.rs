//! A process that serves one request after the other under a budget of memory does not grow.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

use std::ops::ControlFlow;
use std::path::Path;

use mixtral_model::{
    Access, Checkpoint, Compute, Config, Error, GenerateOptions, Loader, MemoryPlan, MemoryUse,
    SessionOptions, Workspace, generate,
};

/// Bytes that this process has in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    1024 * line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap()
}

#[test]
fn a_thousand_requests() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cli/demo");
    let config = Config::from_dir(&dir).unwrap();
    let checkpoint = Checkpoint::open_path(&dir.join("model.safetensors"), Access::Uncached).unwrap();
    let mut plan = MemoryPlan::new(&config, &checkpoint, &MemoryUse::default(), 1 << 40).unwrap();
    plan.experts = plan.all_experts / 3;
    let loader = Loader::new(config, &checkpoint, Compute::default()).within(&plan).unwrap();
    let model = loader.load().unwrap();
    let request = |n: u32| {
        let mut session = model.session(SessionOptions::default().with_context(64)).unwrap();
        let prompt: Vec<u32> = (0..5).map(|i| (n * 31 + i * 7) % 2000).collect();
        let options = GenerateOptions::new(&model, 2);
        let go_on = |_| Ok::<_, Error>(ControlFlow::Continue(()));
        let mut workspace = Workspace::new();
        generate(&model, &mut session, &prompt, &options, &mut workspace, &mut (), go_on).unwrap()
    };
    let first = request(0);
    (1..100).for_each(|n| drop(request(n)));
    let before = resident();
    (100..1000).for_each(|n| drop(request(n)));
    let grown = resident().saturating_sub(before);
    let found = model.expert_cache().unwrap();
    // What is remembered to compare with foreknowledge is all that is added: some hundred bytes a token.
    assert!(grown < 4 << 20, "{grown} bytes more; {found:?}");
    assert!(found.peak <= plan.experts && found.reads > 1000, "{found:?}");
    assert_eq!(request(0).tokens, first.tokens);
}
