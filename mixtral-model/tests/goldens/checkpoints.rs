//! What is said of the tiny checkpoints, beside what another reader finds in their files.

use std::path::PathBuf;

use mixtral_model::inspect::Report;
use mixtral_model::{Access, Checkpoint, Config, Manifest, Source};
use moe_kernels::Dtype;

const BOTH: [Access; 2] = [Access::Map, Access::Read];

fn fixtures() -> Vec<PathBuf> {
    let root = crate::support::fixtures().join("models");
    let mut dirs: Vec<_> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.retain(|path| path.is_dir());
    dirs.sort();
    dirs
}

#[test]
fn fixtures_match_their_manifests() {
    let dirs = fixtures();
    assert_eq!(dirs.len(), 11);
    for dir in dirs {
        let config = Config::from_dir(&dir).unwrap();
        let [mapped, read] = BOTH.map(|access| Checkpoint::open(&dir, access).unwrap());
        for checkpoint in [&mapped, &read] {
            assert_eq!(checkpoint.verify(&config).unwrap(), [""; 0], "{}", dir.display());
            checkpoint.check_values().unwrap();
        }
        for spec in Manifest::new(&config).tensors() {
            let [a, b] = [&mapped, &read].map(|checkpoint| checkpoint.place(&spec, &config).unwrap());
            assert_eq!(a, b);
            let bytes = mapped.read(&a).unwrap();
            assert_eq!(bytes, read.read(&b).unwrap(), "{}", spec.key);
            assert_eq!(bytes.len(), a.rows * a.format.row_bytes(a.columns).unwrap());
            assert_eq!((a.name, (a.rows * a.columns) as u64), (&*spec.key.to_string(), spec.elements()));
            // The same bytes, read from the file where the place says they are.
            let file = std::fs::read(a.path).unwrap();
            assert_eq!(bytes, &file[a.offset as usize..][..a.bytes as usize]);
        }
        assert_eq!(mapped.entries().len(), Manifest::new(&config).tensors().count());
    }
}

#[test]
fn fixtures_hold_what_other_readers_find() {
    for dir in fixtures() {
        let checkpoint = Checkpoint::open(&dir, Access::Map).unwrap();
        for (path, len) in checkpoint.files() {
            let bytes = std::fs::read(path).unwrap();
            assert_eq!(bytes.len() as u64, len);
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            for (name, view) in file.tensors() {
                let ours = checkpoint.tensor(&name).unwrap();
                assert_eq!(
                    (ours.path, ours.shape, &*ours.bytes),
                    (path, view.shape(), view.data()),
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn report_of_a_fixture() {
    let dirs = fixtures();
    let dir = dirs.iter().find(|dir| dir.ends_with("bf16-3-shards")).unwrap();
    let report = Report::of(&Source::directory(dir)).unwrap();
    assert_eq!((report.files, report.tensors, report.unused.len()), (3, 3 * (7 + 24) + 3, 0));
    assert_eq!(report.kinds.iter().map(|kind| kind.parameters).sum::<u64>(), report.parameters);
    assert_eq!(report.dtypes.iter().collect::<Vec<_>>(), [(&"bf16".to_owned(), &(2 * report.parameters))]);
    // Keys and values of 2 heads of 16, 3 layers, 4 bytes.
    assert_eq!(report.kv_bytes_per_token, 2 * 2 * 16 * 3 * 4);
    let halved = report.clone().with_cache(Dtype::F16, Some(5));
    assert_eq!(
        (halved.kv_bytes_per_token, halved.memory.kv_cache),
        (2 * 2 * 16 * 3 * 2, 5 * 2 * 2 * 16 * 3 * 2)
    );
    let text = report.to_string();
    assert!(text.contains("full causal") && text.contains("in 96 tensors, 3 files, bf16"), "{text}");
    assert_eq!(serde_json::to_value(&report).unwrap()["layout"], "hub-per-expert");

    let dir = dirs.iter().find(|dir| dir.ends_with("window-8")).unwrap();
    let report = Report::of(&Source::directory(dir)).unwrap();
    assert_eq!(report.memory.kv_cache, 8 * report.kv_bytes_per_token);
    assert!(report.to_string().contains("window of 8"));
}
