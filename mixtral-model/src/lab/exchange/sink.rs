//! Where imported routes go: a header, as soon as it is known what is in it, and routes.

use std::io::Write;

use moe_core::memory;
use moe_router::trace::{Pair, Phase, TokenRoute, TraceError, TraceHeader, TraceWeights, TraceWriter};

use super::{ExchangeError, ImportOptions, Imported, Place, TraceFormat};

/// Layers of a trace, at most.
const MOST_LAYERS: usize = u16::MAX as usize;

/// Writes a trace of ours. It holds one route back, for whether it was read alone shows only at the next.
pub(super) struct Sink<'a, W: Write> {
    pub(super) options: &'a ImportOptions,
    pub(super) imported: Imported,
    format: TraceFormat,
    state: State<W>,
    header: TraceHeader,
    /// The route at hand.
    route: TokenRoute,
    held: Option<Held>,
}

enum State<W: Write> {
    Waiting(W),
    Begun(TraceWriter<W>),
    /// Beginning failed.
    Gone,
}

struct Held {
    route: TokenRoute,
    place: Place,
    /// Whether its phase is to be told from its neighbours.
    guess: bool,
    /// Whether a neighbour is of the same sequence in the same pass and layer.
    several: bool,
}

impl<'a, W: Write> Sink<'a, W> {
    pub(super) fn new(out: W, format: TraceFormat, options: &'a ImportOptions) -> Self {
        let mut header = TraceHeader::default();
        header.model.clone_from(&options.model);
        header.checkpoint.clone_from(&options.checkpoint);
        header.program = Some(format!("imported, {format}"));
        let (imported, route) = (Imported::default(), TokenRoute::default());
        Self { options, imported, format, state: State::Waiting(out), header, route, held: None }
    }

    /// Whether the header is written.
    pub(super) fn is_begun(&self) -> bool {
        matches!(self.state, State::Begun(_))
    }

    /// What the trace says of its weights.
    pub(super) fn weights(&self) -> TraceWeights {
        self.header.weights
    }

    /// Identity of the sequence, or of the first of several, which the file does not say.
    pub(super) fn sequence(&self) -> u32 {
        self.options.sequence.unwrap_or_default()
    }

    /// How many experts a token has, which the file does not say.
    pub(super) fn choices(&self) -> Result<usize, ExchangeError> {
        let choices = self.options.choices.filter(|&choices| choices > 0).map(usize::from);
        choices.ok_or(ExchangeError::Wanting {
            what: "choices",
            why: "the format does not say how many experts a token has",
        })
    }

    /// How many layers there are, which the file does not say.
    pub(super) fn layers(&self) -> Result<usize, ExchangeError> {
        let listed = Some(self.options.experts.len()).filter(|&count| count > 1);
        let layers = listed.or(self.options.layers.map(usize::from));
        layers.ok_or(ExchangeError::Wanting {
            what: "layers",
            why: "the format does not say how many there are",
        })
    }

    /// Names the model, unless the caller did.
    pub(super) fn name_model(&mut self, name: &str) {
        self.header.model.get_or_insert_with(|| name.to_owned());
    }

    /// Begins the trace, with what the file says of layers and experts; later on, only compares layers.
    pub(super) fn begin(
        &mut self,
        layers: Option<usize>,
        experts: Option<u16>,
        weights: TraceWeights,
        place: Place,
    ) -> Result<(), ExchangeError> {
        if let Some(layers) = layers
            && layers > MOST_LAYERS
        {
            return Err(ExchangeError::malformed(place, format!("at most {MOST_LAYERS} layers"), layers));
        }
        if self.is_begun() {
            let known = self.header.experts.len();
            return match layers {
                Some(layers) if layers != known => {
                    Err(ExchangeError::malformed(place, format!("{known} layers, as before"), layers))
                }
                _ => Ok(()),
            };
        }
        let given = &self.options.experts;
        if let Some(layers) =
            self.options.layers.filter(|&n| given.len() > 1 && usize::from(n) != given.len())
        {
            let expected = format!("{}, as experts are listed", given.len());
            return Err(ExchangeError::unfit("layers", expected, layers));
        }
        if let Some((given, layers)) =
            self.options.layers.zip(layers).filter(|&(given, n)| usize::from(given) != n)
        {
            return Err(ExchangeError::unfit("layers", format!("{layers}, as the file says"), given));
        }
        if let (&[given], Some(experts)) = (given.as_slice(), experts)
            && given != experts
        {
            return Err(ExchangeError::unfit("experts", format!("{experts}, as the file says"), given));
        }
        self.header.experts = match (given.as_slice(), experts) {
            ([], None) => {
                let why = "the format does not say how many a layer has";
                return Err(ExchangeError::Wanting { what: "experts", why });
            }
            (&[count], _) | (&[], Some(count)) => {
                let layers = layers.map_or_else(|| self.layers(), Ok)?;
                std::iter::repeat_n(count, layers).collect()
            }
            (list, _) => {
                if let Some(layers) = layers.filter(|&layers| layers != list.len()) {
                    return Err(ExchangeError::unfit("layers", format!("{}, as given", list.len()), layers));
                }
                list.to_vec()
            }
        };
        if self.header.experts.contains(&0) {
            return Err(ExchangeError::unfit("experts of a layer", "at least 1", 0));
        }
        self.header.weights = weights;
        let State::Waiting(out) = std::mem::replace(&mut self.state, State::Gone) else {
            return Ok(());
        };
        self.state = State::Begun(TraceWriter::new(out, &self.header)?);
        Ok(())
    }

    /// Begins a route.
    pub(super) fn start(
        &mut self,
        (step, layer): (u32, u64),
        (sequence, position): (u32, u64),
        place: Place,
    ) -> Result<(), ExchangeError> {
        let layers = self.header.experts.len();
        let number = u16::try_from(layer).ok().filter(|&layer| usize::from(layer) < layers);
        self.route.layer = number
            .ok_or_else(|| ExchangeError::malformed(place, format!("a layer below {layers}"), layer))?;
        self.route.position = u32::try_from(position)
            .map_err(|_| ExchangeError::malformed(place, "a position below 2^32", position))?;
        (self.route.step, self.route.sequence, self.route.token) = (step, sequence, None);
        self.route.kept.clear();
        self.route.refused.clear();
        Ok(())
    }

    /// Says which token it is.
    pub(super) fn name_token(&mut self, id: u32) {
        self.route.token = Some(id);
    }

    /// Adds a pair that was kept, of the next rank; its weight is of no account in a trace without.
    pub(super) fn keep(&mut self, expert: i64, weight: f32, place: Place) -> Result<(), ExchangeError> {
        let rank = self.route.kept.len() + self.route.refused.len();
        self.add(expert, rank as u64, Some(weight), place)
    }

    /// Adds a pair, which was refused if it has no weight.
    pub(super) fn add(
        &mut self,
        expert: i64,
        rank: u64,
        weight: Option<f32>,
        place: Place,
    ) -> Result<(), ExchangeError> {
        let experts = self.header.experts.get(usize::from(self.route.layer)).copied().unwrap_or_default();
        let below = |what: &str| format!("{what} below {experts}, the layer's number of experts");
        let expert = u16::try_from(expert)
            .ok()
            .filter(|&expert| expert < experts)
            .ok_or_else(|| ExchangeError::malformed(place, below("an expert"), expert))?;
        let rank = u16::try_from(rank)
            .ok()
            .filter(|&rank| rank < experts)
            .ok_or_else(|| ExchangeError::malformed(place, below("a rank"), rank))?;
        let weighed = weight.filter(|_| self.header.weights == TraceWeights::Combination);
        let pair = Pair { expert, requested: expert, rank, weight: weighed.unwrap_or(0.0) };
        let list = if weight.is_some() { &mut self.route.kept } else { &mut self.route.refused };
        Ok(memory::push(list, pair, "pairs of a token")?)
    }

    /// Ends a route. Without a phase, it is decode if no neighbour is of the same sequence, pass and layer.
    pub(super) fn take(&mut self, phase: Option<Phase>, place: Place) -> Result<(), ExchangeError> {
        let of = |route: &TokenRoute| (route.step, route.layer, route.sequence);
        let several = match &mut self.held {
            Some(held) if of(&held.route) == of(&self.route) => {
                held.several = true;
                true
            }
            _ => false,
        };
        let spare = self.flush()?;
        self.route.phase = phase.unwrap_or_default();
        let route = std::mem::replace(&mut self.route, spare);
        self.held = Some(Held { route, place, guess: phase.is_none(), several });
        Ok(())
    }

    /// Writes the route that was held back, and gives it back for another.
    fn flush(&mut self) -> Result<TokenRoute, ExchangeError> {
        let Some(mut held) = self.held.take() else { return Ok(TokenRoute::default()) };
        if held.guess {
            held.route.phase = if held.several { Phase::Prefill } else { Phase::Decode };
        }
        if let State::Begun(writer) = &mut self.state {
            writer.write(&held.route).map_err(|error| match error {
                // It is the file that has it so.
                TraceError::Unfit { what, expected, found } => {
                    ExchangeError::malformed(held.place, expected, format_args!("{what}: {found}"))
                }
                other => other.into(),
            })?;
            self.imported.routes += 1;
        }
        Ok(held.route)
    }

    /// Ends the trace.
    pub(super) fn finish(mut self) -> Result<Imported, ExchangeError> {
        self.flush()?;
        if let State::Begun(writer) = self.state {
            writer.finish()?;
            return Ok(self.imported);
        }
        let found = "no route at all";
        let expected = format!("a trace of the format {}", self.format);
        Err(ExchangeError::malformed(Place::Byte(0), expected, found))
    }
}

/// The pass after one.
pub(super) fn next_pass(pass: u32, place: Place) -> Result<u32, ExchangeError> {
    pass.checked_add(1).ok_or_else(|| ExchangeError::malformed(place, "less than 2^32 passes", "more"))
}
