//! Importances of columns.

use std::ops::ControlFlow;
use std::path::Path;

use mixtral_model::convert::{Calibration, Conversion, Importance};
use mixtral_model::{Access, Error, ExpertMatrix, Manifest, Source, TensorSpec};
use moe_kernels::{Backend, WeightMatrix};
use ndarray::Array2;

use crate::{demo, fixtures, recipe, tensors, write};

/// A GGUF file of one kind of tensors, F32, as llama.cpp's imatrix tool writes it: name, rows, columns, values.
fn save(path: &Path, kind: &str, all: &[(String, usize, usize, Vec<f32>)]) {
    fn string(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((all.len() as u64).to_le_bytes());
    file.extend(1u64.to_le_bytes());
    string(&mut file, "general.type");
    file.extend(8u32.to_le_bytes());
    string(&mut file, kind);
    let (mut data, mut offsets) = (Vec::new(), Vec::new());
    for (.., values) in all {
        offsets.push(data.len() as u64);
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    for ((name, rows, columns, _), offset) in all.iter().zip(offsets) {
        string(&mut file, name);
        file.extend(2u32.to_le_bytes());
        file.extend((*columns as u64).to_le_bytes());
        file.extend((*rows as u64).to_le_bytes());
        file.extend(0u32.to_le_bytes());
        file.extend(offset.to_le_bytes());
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    std::fs::write(path, file).unwrap();
}

fn of_tensor(name: &str, sums: &[Vec<f32>], tokens: &[f32]) -> [(String, usize, usize, Vec<f32>); 2] {
    [
        (format!("{name}.in_sum2"), sums.len(), sums[0].len(), sums.concat()),
        (format!("{name}.counts"), tokens.len(), 1, tokens.to_vec()),
    ]
}

#[test]
fn each_expert_by_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let matrix = dir.path().join("imatrix.gguf");
    // In layer 2, the columns of expert 5 alone do not count alike. Nobody came by at expert 6.
    let mut sums = vec![vec![3.0; 256]; 8];
    sums[5].iter_mut().step_by(3).for_each(|sum| *sum = 0.01);
    sums[6][0] = 100.0;
    let mut tokens = vec![3.0; 8];
    tokens[6] = 0.0;
    save(&matrix, "imatrix", &of_tensor("blk.2.ffn_gate_exps.weight", &sums, &tokens));
    let source = Source::find(&demo()).unwrap();
    let [plain, weighted] = ["plain", "weighted"].map(|name| dir.path().join(format!("{name}.gguf")));
    let conversion = Conversion::new(&source, Access::Map, recipe(&["q4_0"])).unwrap();
    write(&conversion.gguf().unwrap(), &plain).unwrap();
    let conversion = conversion.with_importance(Importance::read(&matrix).unwrap()).unwrap();
    let plan = conversion.gguf().unwrap();
    let told = plan.warnings().join("\n");
    assert!(
        told.contains("for 1 matrices no token came by, model.layers.2.block_sparse_moe.experts.6.w1"),
        "{told}"
    );
    assert!(told.contains("there are no importances, model.layers.0.self_attn.q_proj"), "{told}");
    write(&plan, &weighted).unwrap();
    // The file says so.
    let bytes = std::fs::read(&weighted).unwrap();
    assert!(bytes.windows(21).any(|bytes| bytes == b"quantize.imatrix.file"));

    let (plain, weighted) = (tensors(&plain), tensors(&weighted));
    for (name, (_, _, bytes)) in &plain {
        if name != "blk.2.ffn_gate_exps.weight" {
            assert_eq!(&weighted[name].2, bytes, "{name}");
        }
    }
    let [plain, weighted] = [plain, weighted].map(|all| all["blk.2.ffn_gate_exps.weight"].2.clone());
    let size = plain.len() / 8;
    let differ: Vec<_> =
        (0..8).filter(|e| plain[e * size..][..size] != weighted[e * size..][..size]).collect();
    assert_eq!(differ, [5]);
}

#[test]
fn columns_that_count_more_are_closer() {
    let dir = tempfile::tempdir().unwrap();
    let matrix = dir.path().join("imatrix.gguf");
    let mut sums = vec![vec![1.0; 256]; 8];
    for column in (0..256).step_by(2) {
        sums[5][column] = 1000.0;
    }
    save(&matrix, "imatrix", &of_tensor("blk.2.ffn_gate_exps.weight", &sums, &[1.0; 8]));
    let source = Source::find(&demo()).unwrap();
    let file = dir.path().join("m.gguf");
    let config = source.config().unwrap();
    let spec = Manifest::new(&config).layer(2).expert(5, ExpertMatrix::W1);
    let wide = |source: &Source| {
        let checkpoint = source.checkpoint(Access::Map).unwrap();
        let matrix = checkpoint.matrix(&checkpoint.place(&spec, &config).unwrap()).unwrap();
        let mut all = vec![vec![0.0; 256]; matrix.rows()];
        all.iter_mut().enumerate().for_each(|(row, to)| matrix.widen_row(row, to));
        all
    };
    let exact = wide(&source);
    let error_of_even_columns = |importance: Option<Importance>| {
        let mut conversion = Conversion::new(&source, Access::Map, recipe(&["q4_0"])).unwrap();
        if let Some(importance) = importance {
            conversion = conversion.with_importance(importance).unwrap();
        }
        write(&conversion.gguf().unwrap(), &file).unwrap();
        let found = wide(&Source::find(&file).unwrap());
        let square = |(a, b): (&Vec<f32>, &Vec<f32>)| {
            (0..256).step_by(2).map(|c| f64::from(a[c] - b[c]).powi(2)).sum::<f64>()
        };
        exact.iter().zip(&found).map(square).sum::<f64>()
    };
    let (alike, weighted) =
        (error_of_even_columns(None), error_of_even_columns(Some(Importance::read(&matrix).unwrap())));
    assert!(weighted < 0.95 * alike, "{weighted} {alike}");
}

#[test]
fn what_are_no_importances() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("imatrix.gguf");
    let name = "blk.0.ffn_up_exps.weight";
    let good = of_tensor(name, &vec![vec![1.0; 256]; 8], &[1.0; 8]);
    let read = |kind: &str, all: &[(String, usize, usize, Vec<f32>)]| {
        save(&path, kind, all);
        let source = Source::find(&demo()).unwrap();
        let conversion = Conversion::new(&source, Access::Map, recipe(&["q4_0"])).unwrap();
        let found = Importance::read(&path).and_then(|found| conversion.with_importance(found));
        found.map(|_| ()).map_err(|error| error.to_string())
    };
    read("imatrix", &good).unwrap();
    let of = |sums: Vec<Vec<f32>>, tokens: &[f32]| of_tensor(name, &sums, tokens);
    for (kind, all, expected) in [
        ("model", good.to_vec(), "general.type: expected \"imatrix\""),
        ("imatrix", good[..1].to_vec(), "no such tensor"),
        ("imatrix", of(vec![vec![1.0; 256]; 7], &[1.0; 7]).to_vec(), "(7, 256)"),
        ("imatrix", of(vec![vec![1.0; 128]; 8], &[1.0; 8]).to_vec(), "(8, 128)"),
        ("imatrix", of(vec![vec![1.0; 256]; 8], &[1.0; 7]).to_vec(), "a count for each row"),
        ("imatrix", of(vec![vec![-1.0; 256]; 8], &[1.0; 8]).to_vec(), "at least 0"),
        ("imatrix", of(vec![vec![3e38; 256]; 8], &[1e-30; 8]).to_vec(), "finite means"),
        ("imatrix", of(vec![vec![f32::NAN; 256]; 8], &[1.0; 8]).to_vec(), "at least 0"),
    ] {
        let error = read(kind, &all).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert!(
        Importance::read(&fixtures().join("gguf/Q8_0.gguf")).unwrap_err().to_string().contains("imatrix")
    );
}

/// Where something was measured, it is what Transformers' own inputs of the layer's experts say.
#[test]
fn measured_are_the_mean_squares_of_inputs() {
    let dir = fixtures().join("models/f32-single");
    let goldens = std::fs::read(dir.join("goldens.safetensors")).unwrap();
    let goldens = safetensors::SafeTensors::deserialize(&goldens).unwrap();
    let words = |name: &str| goldens.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
    let ids: Vec<u32> = words("input_ids").into_iter().map(u32::from_le_bytes).collect();
    let source = Source::find(&dir).unwrap();
    let config = source.config().unwrap();
    let conversion = Conversion::new(&source, Access::Map, recipe(&[])).unwrap();
    let text =
        Calibration { ids: &ids, window: ids.len(), backend: Backend::best(), name: Path::new("text") };
    let mut told = Vec::new();
    let importance = Importance::measure(&conversion, text, |tokens| {
        told.push(tokens);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(told.last(), Some(&ids.len()));

    let width = config.hidden_size;
    let x: Vec<f64> = words("moe_in.0").into_iter().map(|word| f64::from(f32::from_le_bytes(word))).collect();
    let chosen: Vec<u32> = words("experts.0").into_iter().map(u32::from_le_bytes).collect();
    let chosen: Vec<_> = chosen.chunks(config.experts_per_token).collect();
    let tokens = importance.tokens_of_experts(0, &config).unwrap();
    let layer = Manifest::new(&config).layer(0);
    let checkpoint = source.checkpoint(Access::Map).unwrap();
    let matrix = |spec| checkpoint.matrix(&checkpoint.place(&spec, &config).unwrap()).unwrap();
    let times = |matrix: &WeightMatrix, x: &[f64]| -> Vec<f64> {
        let mut row = vec![0.0; matrix.columns()];
        let mut product = |n| {
            matrix.widen_row(n, &mut row);
            row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()
        };
        (0..matrix.rows()).map(&mut product).collect()
    };
    for expert in 0..config.experts.most() {
        let came: Vec<&[f64]> = (0..ids.len())
            .filter(|&t| chosen[t].contains(&(expert as u32)))
            .map(|t| &x[t * width..(t + 1) * width])
            .collect();
        assert_eq!(tokens[expert], came.len() as u64);
        let [w1, w2, w3] = ExpertMatrix::ALL.map(|m| layer.expert(expert, m));
        let near = |spec: &TensorSpec, inputs: &[Vec<f64>]| {
            let found = importance.columns(spec, &config);
            assert_eq!(found.is_some(), !inputs.is_empty(), "{}", spec.key);
            for (column, found) in found.unwrap_or_default().iter().enumerate() {
                let mean = inputs.iter().map(|x| x[column].powi(2)).sum::<f64>() / inputs.len() as f64;
                assert!((f64::from(*found) - mean).abs() < 1e-4 * mean + 1e-9, "{} {found} {mean}", spec.key);
            }
        };
        let inputs: Vec<Vec<f64>> = came.iter().map(|x| x.to_vec()).collect();
        near(&w1, &inputs);
        near(&w3, &inputs);
        let (gate, up) = (matrix(w1), matrix(w3));
        let hidden = inputs.iter().map(|x| {
            let silu = times(&gate, x).into_iter().map(|g| g / (1.0 + (-g).exp()));
            silu.zip(times(&up, x)).map(|(gate, up)| gate * up).collect()
        });
        near(&w2, &hidden.collect::<Vec<_>>());
    }
    // The first layer's queries see the embedding's norm.
    let norm = matrix(layer.input_norm());
    let (embedding, mut weight) = (matrix(Manifest::new(&config).embedding()), vec![0.0; width]);
    norm.widen_row(0, &mut weight);
    let mut mean = vec![0.0; width];
    for &id in &ids {
        let mut row = vec![0.0; width];
        embedding.widen_row(id as usize, &mut row);
        let square = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / width as f64;
        let scale = 1.0 / (square + f64::from(config.rms_norm_eps)).sqrt();
        for column in 0..width {
            let value = f64::from(row[column]) * scale * f64::from(weight[column]);
            mean[column] += value.powi(2) / ids.len() as f64;
        }
    }
    let found = importance.columns(&layer.q_proj(), &config).unwrap();
    for (found, mean) in found.iter().zip(mean) {
        assert!((f64::from(*found) - mean).abs() < 1e-4 * mean + 1e-9, "{found} {mean}");
    }
}

/// Where a token sees itself alone, its values are what comes to the output projection.
#[test]
fn what_comes_to_the_output_projection() {
    let source = Source::find(&demo()).unwrap();
    let (config, checkpoint) = (source.config().unwrap(), source.checkpoint(Access::Map).unwrap());
    let ids = [17, 300, 1900, 5, 17];
    let conversion = Conversion::new(&source, Access::Map, recipe(&[])).unwrap();
    let text = Calibration { ids: &ids, window: 1, backend: Backend::best(), name: Path::new("text") };
    let importance = Importance::measure(&conversion, text, |_| ControlFlow::Continue(())).unwrap();
    let wide = |spec: &TensorSpec| {
        let weight = checkpoint.matrix(&checkpoint.place(spec, &config).unwrap()).unwrap();
        let mut rows = Array2::<f32>::zeros((weight.rows(), weight.columns()));
        for (n, mut row) in rows.rows_mut().into_iter().enumerate() {
            weight.widen_row(n, row.as_slice_mut().unwrap());
        }
        rows.mapv(f64::from)
    };
    let manifest = Manifest::new(&config);
    let layer = manifest.layer(0);
    let (norm, values, embedding) =
        (wide(&layer.input_norm()), wide(&layer.v_proj()), wide(&manifest.embedding()));
    let mut mean = vec![0.0; config.heads * config.head_dim];
    for id in ids {
        let row = embedding.row(id as usize);
        let square = row.mapv(|v| v * v).mean().unwrap() + f64::from(config.rms_norm_eps);
        let v = values.dot(&(&row / square.sqrt() * norm.row(0)));
        for (column, mean) in mean.iter_mut().enumerate() {
            let (head, place) = (column / config.head_dim, column % config.head_dim);
            let of = head / (config.heads / config.kv_heads) * config.head_dim + place;
            *mean += v[of].powi(2) / ids.len() as f64;
        }
    }
    let found = importance.columns(&layer.o_proj(), &config).unwrap();
    assert_eq!(found.len(), mean.len());
    for (found, mean) in found.iter().zip(mean) {
        assert!((f64::from(*found) - mean).abs() < 1e-4 * mean + 1e-9, "{found} {mean}");
    }
}

#[test]
fn measuring_can_be_ended_and_has_limits() {
    let source = Source::find(&demo()).unwrap();
    let conversion = Conversion::new(&source, Access::Map, recipe(&[])).unwrap();
    let text = Calibration { ids: &[1, 2, 3], window: 2, backend: Backend::best(), name: Path::new("text") };
    let go_on = |_| ControlFlow::Continue(());
    let measure = |text| Importance::measure(&conversion, text, go_on).map(|_| ());
    measure(text).unwrap();
    let stopped = Importance::measure(&conversion, text, |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Stopped)));
    assert!(matches!(measure(Calibration { window: 0, ..text }), Err(Error::Setting { .. })));
    assert!(matches!(measure(Calibration { window: 4097, ..text }), Err(Error::Setting { .. })));
    assert!(matches!(measure(Calibration { ids: &[1], ..text }), Err(Error::TextTooShort { .. })));
    assert!(matches!(measure(Calibration { ids: &[1, 2048], ..text }), Err(Error::TokenOutOfRange { .. })));
}
