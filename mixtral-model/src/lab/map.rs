//! Where the tokens of a text went.

use std::io::Read;

use moe_core::{OutOfMemory, Routed, memory};
use moe_router::metrics::{CoActivation, ExpertLoad, Transitions};
use moe_router::trace::{TokenRoute, TraceError, TraceReader};

use crate::{Model, Observed, Observer};

/// Where the tokens of a text went, added up while a model runs or from a [trace](moe_router::trace): what [pictures](super::picture) of a
/// routing show. Refused pairs are left out: it counts the experts that worked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RoutingMap {
    /// By layer.
    pub layers: Vec<LayerMap>,
    /// From each layer but the last to the next one, by the best expert of a token in either.
    pub transitions: Vec<Transitions>,
    /// The first tokens.
    pub tokens: Vec<MappedToken>,
    /// How many tokens are kept.
    most: usize,
    pass: Pass,
}

/// One layer of a [`RoutingMap`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LayerMap {
    /// Tokens of each expert.
    pub load: ExpertLoad,
    /// Tokens of each pair of experts.
    pub together: CoActivation,
}

/// A token of a [`RoutingMap`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MappedToken {
    /// Its id, if it is known.
    pub id: Option<u32>,
    /// Identity of its sequence, and its position there.
    pub place: [u64; 2],
    /// Its experts, best first, by layer; a layer that has not seen it is left out, or has none.
    pub experts: Vec<Vec<usize>>,
}

/// A token of the pass at hand, and its best expert.
type Seen = ([u64; 2], Option<usize>);

/// The layer at hand of a pass, and the one before it.
#[derive(Clone, Debug, Default)]
struct Pass {
    layer: Option<usize>,
    now: Vec<Seen>,
    before: Vec<Seen>,
    /// How many tokens were kept before the pass.
    kept: usize,
}

impl RoutingMap {
    /// Of layers with so many experts; the first `tokens` tokens are kept one by one.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn new(experts: impl IntoIterator<Item = usize>, tokens: usize) -> Result<Self, OutOfMemory> {
        let (layers, transitions, pass) = (Vec::new(), Vec::new(), Pass::default());
        let mut map = Self { layers, transitions, tokens: Vec::new(), most: tokens, pass };
        let experts: Vec<_> = experts.into_iter().collect();
        // Where matrices of all pairs are made, nobody can be told that there is no room: asked for here, and given back.
        let pairs = experts.iter().map(|&experts| experts.saturating_mul(experts).saturating_mul(2));
        memory::reserve(&mut Vec::<u64>::new(), pairs.fold(0, usize::saturating_add), "pairs of experts")?;
        let mut before = None;
        for experts in experts {
            let load = ExpertLoad::from_counts(vec![0; experts]);
            map.layers.push(LayerMap { load, together: CoActivation::new(experts) });
            if let Some(before) = before.replace(experts) {
                map.transitions.push(Transitions::new(before, experts));
            }
        }
        Ok(map)
    }

    /// Of the layers of a model.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn of(model: &Model, tokens: usize) -> Result<Self, OutOfMemory> {
        let config = model.config();
        Self::new((0..config.layers).map(|n| config.experts.of(n)), tokens)
    }

    /// Reads the rest of a trace.
    ///
    /// # Errors
    ///
    /// Those of [`TraceReader::next`].
    pub fn read(reader: &mut TraceReader<impl Read>, tokens: usize) -> Result<Self, TraceError> {
        let mut map = Self::new(reader.header().experts.iter().map(|&count| usize::from(count)), tokens)?;
        let (mut route, mut step, mut experts) = (TokenRoute::default(), None, Vec::new());
        while reader.next(&mut route)? {
            let layer = usize::from(route.layer);
            let same_pass = step.replace(route.step) == Some(route.step);
            if !same_pass || map.pass.layer != Some(layer) {
                map.begin(layer, !same_pass);
            }
            experts.clear();
            memory::reserve(&mut experts, route.kept.len(), "experts of a token")?;
            experts.extend(route.experts());
            let place = [route.sequence.into(), route.position.into()];
            map.add(layer, place, route.token, &experts)?;
        }
        Ok(map)
    }

    /// Begins a layer, perhaps of another pass.
    fn begin(&mut self, layer: usize, of_new_pass: bool) {
        let Pass { layer: at, now, before, kept } = &mut self.pass;
        std::mem::swap(now, before);
        now.clear();
        if of_new_pass || at.is_none_or(|at| at + 1 != layer) {
            // Transitions are from one layer to the next.
            before.clear();
        }
        if of_new_pass {
            *kept = self.tokens.len();
        }
        *at = Some(layer);
    }

    /// Adds the next token of the layer that was begun.
    fn add(
        &mut self,
        layer: usize,
        place: [u64; 2],
        id: Option<u32>,
        experts: &[usize],
    ) -> Result<(), OutOfMemory> {
        let Pass { now, before, kept, .. } = &mut self.pass;
        let (at, best) = (now.len(), experts.first().copied());
        memory::push(now, (place, best), "tokens of a pass")?;
        let Some(of_layer) = self.layers.get_mut(layer) else { return Ok(()) };
        experts.iter().for_each(|&expert| of_layer.load.add_tokens(expert, 1));
        of_layer.together.add_token(experts);
        if let (Some(&(same, Some(from))), Some(to)) = (before.get(at), best)
            && same == place
        {
            self.transitions[layer - 1].add_token(from, to);
        }
        let at = *kept + at;
        if at == self.tokens.len() && at < self.most {
            let token = MappedToken { id, place, experts: vec![Vec::new(); self.layers.len()] };
            memory::push(&mut self.tokens, token, "tokens of a map")?;
        }
        if let Some(token) = self.tokens.get_mut(at).filter(|token| token.place == place) {
            token.experts[layer] = experts.to_vec();
        }
        Ok(())
    }
}

impl Observer for RoutingMap {
    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        let context = &routed.context;
        self.begin(routed.layer, self.pass.layer.is_none_or(|before| routed.layer <= before));
        let mut experts = Vec::new();
        for t in (0..routed.plan.tokens()).filter(|&t| !context.is_padding(t)) {
            let [_, sequence, position] = context.place(t);
            experts.clear();
            experts.extend(routed.plan.choices(t).map(|choice| choice.expert));
            let id = context.token_ids.and_then(|ids| ids.get(t)).copied();
            self.add(routed.layer, [sequence, position], id, &experts)?;
        }
        Ok(())
    }
}
