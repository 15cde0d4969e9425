//! The layout that a checkpoint's names show.

use super::{ExpertStorage, Layout, Spelling};

/// Modules of a layer that gate and experts have been seen in, the most usual first.
const MODULES: [&str; 3] = ["block_sparse_moe", "mlp", "feed_forward"];

impl Layout {
    /// The layout that the names of a GGUF file show, which are GGUF's whatever they are.
    pub(crate) fn of_gguf<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Self {
        let has = |part: &str| names.clone().any(|name| name.contains(part));
        let experts = if has(".ffn_gate_up_exps.") {
            ExpertStorage::Fused
        } else if ["gate", "up", "down"].iter().any(|part| has(&format!(".ffn_{part}_exps.")))
            || !has(".ffn_gate.0.")
        {
            ExpertStorage::Stacked
        } else {
            ExpertStorage::PerExpert
        };
        let (body, outer, module) = (String::new(), String::new(), String::new());
        Self { spelling: Spelling::Gguf, experts, body, outer, module, suffix: ".weight" }
    }

    /// The layout that the names of safetensors show. Where they show none, it is taken for the most usual one, so that the first
    /// tensor that is missing is what gets reported.
    pub(crate) fn of<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Self {
        let has = |part: &str| names.clone().any(|name| name.contains(part));
        let starts = |part: &str| names.clone().any(|name| name.starts_with(part));
        let consolidated = before(names.clone(), "layers.0.attention_norm.weight", "tok_embeddings.weight");
        let hub = before(names.clone(), "layers.0.input_layernorm.weight", "embed_tokens.weight");
        let (spelling, body) = match (consolidated, hub) {
            (Some(body), None) => (Spelling::Consolidated, body.to_owned()),
            (_, Some(body)) => (Spelling::Hub, body.to_owned()),
            (None, None) if starts("tok_embeddings.") => (Spelling::Consolidated, String::new()),
            (None, None) => (Spelling::Hub, "model.".to_owned()),
        };
        let outer = match spelling {
            Spelling::Hub => body.strip_suffix("model.").unwrap_or(&body).to_owned(),
            _ => body.clone(),
        };
        let usual = if spelling == Spelling::Consolidated { "feed_forward" } else { MODULES[0] };
        let shown = MODULES.into_iter().find(|module| {
            ["gate.weight", "experts.", "switch_mlp.", "w1"]
                .iter()
                .any(|part| has(&format!(".{module}.{part}")))
        });
        let module = shown.unwrap_or(usual).to_owned();
        let seen = |part: &str| has(&format!(".{module}.{part}"));
        let weight = |with: bool| if with { ".weight" } else { "" };
        let (experts, suffix) = if seen("experts.gate_up_proj") {
            (ExpertStorage::Fused, weight(seen("experts.gate_up_proj.weight")))
        } else if seen("switch_mlp.") {
            (ExpertStorage::Stacked, ".weight")
        } else if seen("w1") {
            (ExpertStorage::Concatenated, weight(seen("w1.weight")))
        } else {
            (ExpertStorage::PerExpert, ".weight")
        };
        Self { spelling, experts, body, outer, module, suffix }
    }
}

/// What stands before `of_layer` in a name that ends so. Of several models in a file it is the one with an embedding, `beside`, and of
/// several such the one with the least before its names.
fn before<'a>(names: impl Iterator<Item = &'a str> + Clone, of_layer: &str, beside: &str) -> Option<&'a str> {
    let mut bodies: Vec<&str> = names.clone().filter_map(|name| name.strip_suffix(of_layer)).collect();
    // A name may end so by chance, as in `sub_layers.0...`.
    bodies.retain(|body| body.is_empty() || body.ends_with('.'));
    bodies.sort_unstable_by_key(|body| (body.len(), *body));
    let has_embedding = |body: &&&str| names.clone().any(|name| name.strip_prefix(**body) == Some(beside));
    bodies.iter().find(has_embedding).or(bodies.first()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{ExpertMatrix, LayerPart, TensorKey};
    use crate::{Config, RowOrder};

    fn layout(names: &[&str]) -> Layout {
        match names[0].starts_with("blk.") {
            true => Layout::of_gguf(names.iter().copied()),
            false => Layout::of(names.iter().copied()),
        }
    }

    fn place(layout: &Layout, part: LayerPart) -> (String, Vec<usize>, usize) {
        let mut config = Config::mixtral_8x7b();
        (config.hidden_size, config.intermediate_size, config.experts) = (4, 6, 3.into());
        let shape = match part {
            LayerPart::Expert { matrix: ExpertMatrix::W2, .. } => [4, 6],
            _ => [6, 4],
        };
        let slot = layout.slot(TensorKey::Layer { layer: 1, part }, &shape, &config);
        (slot.name, slot.shape, slot.first_row)
    }

    #[test]
    fn where_an_expert_lies() {
        let of = |matrix| LayerPart::Expert { expert: 2, matrix };
        let (w1, w2, w3) = (of(ExpertMatrix::W1), of(ExpertMatrix::W2), of(ExpertMatrix::W3));
        for (names, expected) in [
            (
                &["model.layers.0.block_sparse_moe.experts.0.w1.weight"][..],
                [
                    ("model.layers.1.block_sparse_moe.experts.2.w3.weight", vec![6, 4], 0),
                    ("model.layers.1.block_sparse_moe.experts.2.w2.weight", vec![4, 6], 0),
                ],
            ),
            (
                &["model.layers.0.mlp.experts.gate_up_proj"],
                [
                    ("model.layers.1.mlp.experts.gate_up_proj", vec![3, 12, 4], 30),
                    ("model.layers.1.mlp.experts.down_proj", vec![3, 4, 6], 8),
                ],
            ),
            (
                &["model.layers.0.block_sparse_moe.switch_mlp.up_proj.weight"],
                [
                    ("model.layers.1.block_sparse_moe.switch_mlp.up_proj.weight", vec![3, 6, 4], 12),
                    ("model.layers.1.block_sparse_moe.switch_mlp.down_proj.weight", vec![3, 4, 6], 8),
                ],
            ),
            (
                &["model.layers.0.block_sparse_moe.w1"],
                [
                    ("model.layers.1.block_sparse_moe.w3", vec![18, 4], 12),
                    ("model.layers.1.block_sparse_moe.w2", vec![12, 6], 8),
                ],
            ),
            (
                &["tok_embeddings.weight", "layers.0.attention_norm.weight"],
                [
                    ("layers.1.feed_forward.experts.2.w3.weight", vec![6, 4], 0),
                    ("layers.1.feed_forward.experts.2.w2.weight", vec![4, 6], 0),
                ],
            ),
            (
                &["blk.0.ffn_gate.0.weight"],
                [("blk.1.ffn_up.2.weight", vec![6, 4], 0), ("blk.1.ffn_down.2.weight", vec![4, 6], 0)],
            ),
            (
                &["blk.0.ffn_up_exps.weight"],
                [
                    ("blk.1.ffn_up_exps.weight", vec![3, 6, 4], 12),
                    ("blk.1.ffn_down_exps.weight", vec![3, 4, 6], 8),
                ],
            ),
            (
                &["blk.0.ffn_gate_up_exps.weight"],
                [
                    ("blk.1.ffn_gate_up_exps.weight", vec![3, 12, 4], 30),
                    ("blk.1.ffn_down_exps.weight", vec![3, 4, 6], 8),
                ],
            ),
        ] {
            let layout = layout(names);
            let expected = expected.map(|(name, shape, row)| (name.to_owned(), shape, row));
            assert_eq!([place(&layout, w3), place(&layout, w2)], expected, "{names:?}");
            if layout.experts() == ExpertStorage::Fused {
                assert_eq!(place(&layout, w1).2, 24, "w1 goes before w3");
            }
        }
    }

    #[test]
    fn what_stands_before_all_names() {
        for (names, body, head) in [
            (&["model.layers.0.input_layernorm.weight"][..], "model.", "lm_head.weight"),
            (&["layers.0.input_layernorm.weight"], "", "lm_head.weight"),
            (
                &["language_model.model.layers.0.input_layernorm.weight"],
                "language_model.model.",
                "language_model.lm_head.weight",
            ),
            (&["model.model.layers.0.input_layernorm.weight"], "model.model.", "model.lm_head.weight"),
            (
                &[
                    "a.layers.0.input_layernorm.weight",
                    "b.layers.0.input_layernorm.weight",
                    "b.embed_tokens.weight",
                ],
                "b.",
                "b.lm_head.weight",
            ),
            (
                &["a.model.layers.0.input_layernorm.weight", "model.layers.0.input_layernorm.weight"],
                "model.",
                "lm_head.weight",
            ),
            (&["x.weight"], "model.", "lm_head.weight"),
        ] {
            let layout = layout(names);
            assert_eq!(
                (layout.layer(0), layout.name(TensorKey::Head)),
                (format!("{body}layers.0."), head.to_owned())
            );
        }
    }

    #[test]
    fn rows_of_queries_and_keys() {
        let config = Config::mixtral_8x7b();
        let order = |names: &[&str], part| {
            layout(names).slot(TensorKey::Layer { layer: 0, part }, &[4096, 4096], &config).order
        };
        for (names, expected) in [
            (["model.layers.0.input_layernorm.weight"], RowOrder::Halves),
            (["layers.0.attention_norm.weight"], RowOrder::Pairs),
            (["blk.0.attn_q.weight"], RowOrder::Pairs),
        ] {
            assert_eq!([LayerPart::Query, LayerPart::Key].map(|part| order(&names, part)), [expected; 2]);
            assert_eq!(order(&names, LayerPart::Value), RowOrder::Halves);
        }
    }
}
