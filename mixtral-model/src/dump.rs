//! What a model computes on a text, layer by layer, as a value and as a file.

use std::ops::ControlFlow;
use std::path::Path;

use moe_core::{Routed, RoutingPlan, memory};
use ndarray::ArrayView2;

use crate::save::{Elements, Tensor, save_tensors};
use crate::workspace::matrix_of;
use crate::{Error, Model, Observed, Observer, Result, Session, Step, Wanted, Workspace};

/// The kept choices of a row of tokens in one layer. Tokens may have different numbers of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choices {
    experts: Vec<u32>,
    weights: Vec<f32>,
    /// Where each token's choices end.
    ends: Vec<usize>,
}

impl Choices {
    /// No tokens.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all tokens, and keeps the memory.
    pub fn clear(&mut self) {
        self.experts.clear();
        self.weights.clear();
        self.ends.clear();
    }

    /// Appends the tokens of a plan.
    pub fn extend(&mut self, plan: &RoutingPlan) {
        for t in 0..plan.tokens() {
            for choice in plan.choices(t) {
                self.experts.push(choice.expert as u32);
                self.weights.push(choice.weight);
            }
            self.ends.push(self.experts.len());
        }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ends.len()
    }

    /// The experts of token `t`, best first; none for a token that is not there.
    pub fn experts(&self, t: usize) -> &[u32] {
        &self.experts[self.range(t)]
    }

    /// The combination weights of the same.
    pub fn weights(&self, t: usize) -> &[f32] {
        &self.weights[self.range(t)]
    }

    /// How many choices fell on each of `experts` experts.
    pub fn load(&self, experts: usize) -> Vec<usize> {
        let mut load = vec![0; experts];
        for &e in &self.experts {
            if let Some(count) = load.get_mut(e as usize) {
                *count += 1;
            }
        }
        load
    }

    fn range(&self, t: usize) -> std::ops::Range<usize> {
        let end = |t: usize| self.ends.get(t).copied();
        let begin = t.checked_sub(1).map_or(Some(0), end);
        begin.zip(end(t)).map_or(0..0, |(begin, end)| begin..end)
    }

    /// Most choices of a token.
    fn widest(&self) -> usize {
        (0..self.tokens()).map(|t| self.range(t).len()).max().unwrap_or(0)
    }

    /// `[T, k]` with k the most choices of a token; the places of a token that has fewer hold `nothing`.
    fn padded<V: Copy>(&self, of: impl Fn(&Self, usize) -> &[V], nothing: V) -> Vec<V> {
        let k = self.widest();
        let mut all = vec![nothing; self.tokens() * k];
        for (t, row) in all.chunks_mut(k.max(1)).enumerate() {
            let choices = of(self, t);
            row[..choices.len()].copy_from_slice(choices);
        }
        all
    }
}

/// Logits, hidden states and routing of a text.
///
/// T tokens, V vocabulary, D width, E experts, k choices. It keeps T · (V + layers · (D + E + 2k)) words in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Dump {
    tokens: usize,
    vocabulary: usize,
    dim: usize,
    /// `[T, V]`.
    logits: Vec<f32>,
    layers: Vec<LayerDump>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct LayerDump {
    /// E.
    experts: usize,
    /// `[T, D]`.
    hidden: Vec<f32>,
    /// `[T, E]`.
    router_logits: Vec<f32>,
    choices: Choices,
}

impl Dump {
    /// Reads `ids` into the session, the first `prefill` of them in one pass and the others one at a time, and keeps what
    /// the model computes. `prefill` changes speed and memory, not a bit of the result.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyPrompt`]; [`Error::Setting`] if `prefill` is 0; [`Error::OutOfMemory`]; those of [`Model::forward`].
    pub fn record(
        model: &Model,
        session: &mut Session,
        ids: &[u32],
        prefill: usize,
        workspace: &mut Workspace,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        if ids.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if prefill == 0 {
            let (expected, found) = ("1 or more".to_owned(), "0".to_owned());
            return Err(Error::Setting { setting: "prefill", expected, found });
        }
        session.reserve(ids.len())?;
        let mut dump = Self::empty(model, ids.len())?;
        let (first, rest) = ids.split_at(prefill.min(ids.len()));
        for tokens in std::iter::once(first).chain(rest.chunks(1)) {
            let step = Step::new(&mut *session, tokens).wanted(Wanted::All);
            let mut both = (Recorder(&mut dump.layers), &mut *observer);
            let logits = model.forward(&mut [step], workspace, &mut both)?;
            dump.logits.extend(logits.iter());
        }
        Ok(dump)
    }

    /// A dump with memory for so many tokens.
    fn empty(model: &Model, tokens: usize) -> Result<Self> {
        let config = model.config();
        let room = |columns: usize| {
            let mut values = Vec::new();
            memory::reserve(&mut values, tokens.saturating_mul(columns), "a dump")?;
            Ok::<_, Error>(values)
        };
        let mut layers = Vec::new();
        for n in 0..config.layers {
            let experts = config.experts.of(n);
            let (hidden, router_logits) = (room(config.hidden_size)?, room(experts)?);
            layers.push(LayerDump { experts, hidden, router_logits, choices: Choices::new() });
        }
        Ok(Self {
            tokens,
            vocabulary: config.vocab_size,
            dim: config.hidden_size,
            logits: room(config.vocab_size)?,
            layers,
        })
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The logits after each token, `[T, V]`.
    pub fn logits(&self) -> ArrayView2<'_, f32> {
        matrix_of(&self.logits, self.tokens, self.vocabulary)
    }

    /// What a layer hands on, `[T, D]`.
    ///
    /// # Panics
    ///
    /// If there is no such layer.
    pub fn hidden(&self, layer: usize) -> ArrayView2<'_, f32> {
        matrix_of(&self.layers[layer].hidden, self.tokens, self.dim)
    }

    /// What a layer's gate gives, `[T, E]`.
    ///
    /// # Panics
    ///
    /// If there is no such layer.
    pub fn router_logits(&self, layer: usize) -> ArrayView2<'_, f32> {
        let LayerDump { router_logits, experts, .. } = &self.layers[layer];
        matrix_of(router_logits, self.tokens, *experts)
    }

    /// What a layer's router chose.
    ///
    /// # Panics
    ///
    /// If there is no such layer.
    pub fn choices(&self, layer: usize) -> &Choices {
        &self.layers[layer].choices
    }

    /// Writes a safetensors file: `logits` `[T, V]` and, for each layer N, `hidden.N` `[T, D]`, `router_logits.N` `[T, E]`,
    /// `experts.N` `[T, k]` (i32, best first) and `weights.N` `[T, k]`; f32 but for the experts. Where a router gives tokens
    /// different numbers of experts, k is the largest, and the places left over are expert -1 with weight 0.
    ///
    /// The file appears under its name when it is complete; one that was there is replaced.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], and [`Error::Checkpoint`] if something other than a regular file has that name. Nothing is left behind.
    pub fn save(&self, path: &Path) -> Result<()> {
        let floats = |name: String, columns, values| Tensor {
            name,
            shape: vec![self.tokens, columns],
            elements: Elements::F32(values),
        };
        let mut tensors = vec![floats("logits".to_owned(), self.vocabulary, (&self.logits[..]).into())];
        for (n, layer) in self.layers.iter().enumerate() {
            let k = layer.choices.widest();
            let experts = layer.choices.padded(Choices::experts, u32::MAX);
            tensors.push(floats(format!("hidden.{n}"), self.dim, (&layer.hidden[..]).into()));
            tensors.push(floats(
                format!("router_logits.{n}"),
                layer.experts,
                (&layer.router_logits[..]).into(),
            ));
            tensors.push(Tensor {
                name: format!("experts.{n}"),
                shape: vec![self.tokens, k],
                elements: Elements::I32(experts.into_iter().map(u32::cast_signed).collect()),
            });
            tensors.push(floats(
                format!("weights.{n}"),
                k,
                layer.choices.padded(Choices::weights, 0.0).into(),
            ));
        }
        save_tensors(path, None, &tensors)
    }
}

/// Appends what a pass does to the layers of a dump.
struct Recorder<'a>(&'a mut [LayerDump]);

impl Observer for Recorder<'_> {
    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        let layer = &mut self.0[routed.layer];
        layer.router_logits.extend(routed.logits.iter());
        layer.choices.extend(routed.plan);
        Ok(())
    }

    fn layer_done(&mut self, layer: usize, hidden: ArrayView2<'_, f32>) -> Observed<ControlFlow<()>> {
        self.0[layer].hidden.extend(hidden.iter());
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
mod tests {
    use moe_core::Assignments;

    use super::*;

    /// Plans of three tokens with two, no and one expert, and of one token with one.
    fn ragged() -> Choices {
        let mut choices = Choices::new();
        for pairs in [&[(0, 3, 0.75), (0, 1, 0.25), (2, 3, 1.0)][..], &[(0, 0, 0.5)]] {
            let mut assignments = Assignments::new();
            assignments.reset(if pairs.len() == 1 { 1 } else { 3 }, 4).unwrap();
            for &(token, expert, weight) in pairs {
                assignments.assign(token, expert, weight);
            }
            let mut plan = RoutingPlan::new();
            plan.seal(&assignments).unwrap();
            choices.extend(&plan);
        }
        choices
    }

    #[test]
    fn tokens_may_differ_in_their_number_of_experts() {
        let choices = ragged();
        assert_eq!(choices.tokens(), 4);
        let experts: Vec<_> = (0..5).map(|t| choices.experts(t)).collect();
        assert_eq!(experts, [&[3, 1][..], &[], &[3], &[0], &[]]);
        assert_eq!((choices.weights(0), choices.weights(4)), (&[0.75, 0.25][..], &[][..]));
        assert_eq!(choices.load(4), [1, 1, 0, 2]);
    }

    #[test]
    fn a_file_pads_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dump.safetensors");
        let layer =
            LayerDump { experts: 4, hidden: vec![0.5; 8], router_logits: vec![0.0; 16], choices: ragged() };
        let dump = Dump { tokens: 4, vocabulary: 1, dim: 2, logits: vec![1.0; 4], layers: vec![layer] };
        dump.save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let experts = file.tensor("experts.0").unwrap();
        let found: Vec<_> =
            experts.data().as_chunks().0.iter().map(|&word| i32::from_le_bytes(word)).collect();
        assert_eq!((experts.shape(), &*found), (&[4, 2][..], &[3, 1, -1, -1, 3, -1, 0, -1][..]));
        let weights = file.tensor("weights.0").unwrap();
        assert_eq!(weights.data()[8..16], [0; 8]);
        assert_eq!(file.tensor("hidden.0").unwrap().shape(), [4, 2]);
        assert_eq!(file.len(), 5);
    }
}
