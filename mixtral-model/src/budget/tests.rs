//! Disks that fail.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::checkpoint::RawFile;
use crate::{
    Access, Checkpoint, Compute, Error, Loader, MemoryPlan, MemoryUse, Model, ReadAhead, Session,
    SessionOptions, Step, Workspace,
};

#[path = "../../tests/laws/tiny.rs"]
#[allow(dead_code, reason = "models of the tests without, of which few are needed here")]
mod tiny;

use tiny::{Shape, bits};

/// A model in a file, with memory for so many experts.
fn model(shape: &Shape, path: &Path, experts: u64, read_ahead: ReadAhead) -> Model {
    let (config, checkpoint) = (shape.config(), Checkpoint::open_path(path, Access::Uncached).unwrap());
    let mut plan = MemoryPlan::new(&config, &checkpoint, &MemoryUse::default(), 1 << 40).unwrap();
    plan.experts = experts * plan.largest_expert;
    let plan = plan.with_read_ahead(read_ahead);
    Loader::new(config, &checkpoint, Compute::default()).within(&plan).unwrap().load().unwrap()
}

/// What goes wrong with the file of its experts.
fn set(model: &Model, fault: impl Fn(&crate::checkpoint::UncachedFile) -> &AtomicUsize, every: usize) {
    let store = &model.cache.as_ref().unwrap().0;
    let RawFile::Uncached(file) = &store.places(0)[0].0[0].raw else { panic!("no file") };
    fault(file).store(every, Ordering::Relaxed);
}

fn pass(model: &Model, session: &mut Session, ids: &[u32]) -> Result<Vec<u32>, Error> {
    let mut workspace = Workspace::new();
    Ok(bits(&model.forward(&mut [Step::new(session, ids)], &mut workspace, &mut ())?.to_owned()))
}

/// At every k-th call the disk fails: the pass is an error that names the file, the session is as it was, and the same pass succeeds
/// when the disk does.
#[test]
fn a_disk_that_fails() {
    let shape = Shape { layers: 3, hidden: 64, ffn: 96, ..Shape::plain() };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, shape.safetensors(&shape.tensors(|_, _| ()))).unwrap();
    let whole = shape.model(moe_kernels::Backend::best());
    let ids = shape.ids(60);
    let mut failed = 0;
    for read_ahead in [ReadAhead::On, ReadAhead::Off] {
        for experts in [0, 1, 4, 9] {
            for every in [1, 2, 3, 5, 7, 11, 23] {
                let model = model(&shape, &path, experts, read_ahead);
                let mut session = model.session(SessionOptions::default()).unwrap();
                let mut other = whole.session(SessionOptions::default()).unwrap();
                for ids in ids.chunks(4) {
                    let expected = pass(&whole, &mut other, ids).unwrap();
                    let position = session.position();
                    set(&model, |file| &file.faults.fails_at, every);
                    // What is in memory needs no disk.
                    let found = pass(&model, &mut session, ids).or_else(|error| {
                        let text = error.to_string();
                        assert!(
                            text.contains("model.safetensors") && text.contains("the disk fails"),
                            "{text}"
                        );
                        assert_eq!(session.position(), position);
                        failed += 1;
                        set(&model, |file| &file.faults.fails_at, 0);
                        pass(&model, &mut session, ids)
                    });
                    assert_eq!(found.unwrap(), expected, "{experts} {every}");
                }
            }
        }
    }
    assert!(failed > 100, "{failed}");
}

/// A disk that reads less than it was asked for is asked again.
#[test]
fn a_disk_that_reads_short() {
    let shape = Shape { layers: 3, hidden: 64, ffn: 96, ..Shape::plain() };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, shape.safetensors(&shape.tensors(|_, _| ()))).unwrap();
    let whole = shape.model(moe_kernels::Backend::best());
    for every in [1, 2, 3, 7] {
        let model = model(&shape, &path, 3, ReadAhead::On);
        set(&model, |file| &file.faults.is_short_at, every);
        let mut session = model.session(SessionOptions::default()).unwrap();
        let mut other = whole.session(SessionOptions::default()).unwrap();
        for ids in shape.ids(40).chunks(3) {
            let expected = pass(&whole, &mut other, ids).unwrap();
            assert_eq!(pass(&model, &mut session, ids).unwrap(), expected, "{every}");
        }
    }
}

/// Whoever guesses may name an expert twice, or guess in a pass that does not read ahead.
#[test]
fn guesses_of_all_kinds() {
    let shape = Shape { layers: 3, hidden: 64, ffn: 96, ..Shape::plain() };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, shape.safetensors(&shape.tensors(|_, _| ()))).unwrap();
    for (read_ahead, asked) in [(ReadAhead::On, 2), (ReadAhead::Off, 0)] {
        let model = model(&shape, &path, 6, read_ahead);
        let store = &model.cache.as_ref().unwrap().0;
        store.begin_pass(1);
        store.expect(1, [2, 2, 2, 3, 4].into());
        store.read_ahead(0, 0, &mut Vec::new());
        assert_eq!(store.counts().ahead, asked);
        let mut begun = store.begin(1, &[2]).unwrap();
        assert_eq!(begun.fetch.has(2), asked > 0);
        assert_eq!(begun.fetch.next().is_some_and(|(expert, read)| expert == 2 && read.is_ok()), asked > 0);
        assert!(begun.fetch.next().is_none(), "it comes once");
        drop(begun);
        store.expect(1, [0].into());
        store.end_pass(std::time::Duration::ZERO, false);
        store.begin_pass(1);
        store.read_ahead(0, 0, &mut Vec::new());
        assert_eq!(store.counts().ahead, asked, "a guess is of its pass");
    }
}
