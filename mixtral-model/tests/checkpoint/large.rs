//! The true geometry of Mixtral 8x7B in files that are nearly all holes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use mixtral_model::inspect::Report;
use mixtral_model::{Checkpoint, Config, Manifest, TensorSpec};
use serde_json::{Map, Value, json};

use crate::BOTH;

/// Writes a header and a hole as long as the data it describes.
fn write_hollow(path: &Path, specs: &[TensorSpec]) {
    let (mut header, mut at) = (Map::new(), 0);
    for spec in specs {
        let end = at + 2 * spec.elements();
        let entry = json!({ "dtype": "BF16", "shape": spec.shape, "data_offsets": [at, end] });
        header.insert(spec.key.to_string(), entry);
        at = end;
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + at).unwrap();
}

#[test]
fn published_geometry_opens_from_headers_alone() {
    let config = Config::mixtral_8x7b();
    let specs: Vec<_> = Manifest::new(&config).tensors().collect();
    let dir = tempfile::tempdir().unwrap();
    let mut map = BTreeMap::new();
    for (n, part) in specs.chunks(340).enumerate() {
        let name = format!("model-{:05}-of-00003.safetensors", n + 1);
        write_hollow(&dir.path().join(&name), part);
        map.extend(part.iter().map(|spec| (spec.key.to_string(), name.clone())));
    }
    let index = json!({ "metadata": { "total_size": 93_405_585_408u64 }, "weight_map": map });
    std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();

    for access in BOTH {
        let checkpoint = Checkpoint::open(dir.path(), access).unwrap();
        let report = Report::new(&config, &checkpoint).unwrap();
        assert_eq!((report.files, report.tensors), (3, 995));
        assert_eq!(report.parameters, 46_702_792_704);
        assert_eq!(report.active_parameters, 12_879_925_248);
        assert_eq!(report.memory.weights, 93_405_585_408);
        assert_eq!(report.kv_bytes_per_token, 256 << 10);
        assert_eq!(report.memory.kv_cache, 8 << 30);
        assert!(
            report.to_string().contains("46,702,792,704 (46.7 B), of which 12.9 B act on a token"),
            "{report}"
        );
        // Far inside the last shard, and nothing but the tensor itself is touched.
        let norm = checkpoint.require("model.norm.weight", &[4096]).unwrap();
        assert!(norm.bytes.iter().all(|&byte| byte == 0));
    }
}
