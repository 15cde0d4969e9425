//! The losses of a routing, and of which logits they are.

use moe_core::{RouteInput, Routed, RoutingPlan};
use moe_router::RouterSpec;
use moe_router::losses::{Affinity, Entropy, Importance, LoadBalance, SequenceBalance, ZLoss};
use ndarray::ArrayView2;
use serde::{Serialize, Serializer};

use crate::args::{GivenAs, LossLogits, LossMean, Route};
use crate::failure::{Failure, Result};

/// A routing as losses look at it.
#[derive(Clone, Copy)]
pub(super) struct Basis<'a> {
    /// With the logits that all losses but importance are of.
    pub(super) routed: Routed<'a>,
    importance: RouteInput<'a>,
    mean: LossMean,
    given: GivenAs,
}

impl<'a> Basis<'a> {
    /// `noisy` are the logits that the router decided on.
    pub(super) fn new(
        input: &RouteInput<'a>,
        plan: &'a RoutingPlan,
        noisy: ArrayView2<'a, f32>,
        spec: &RouterSpec,
        args: &Route,
    ) -> Result<Self> {
        let clean_importance = args.loss_logits == LossLogits::Paper && spec.importance_without_noise();
        let of = |clean: bool| if clean { input.logits } else { noisy };
        let clean = args.loss_logits == LossLogits::Clean;
        Ok(Self {
            routed: Routed::new(of(clean), plan, input.context)?,
            importance: RouteInput::new(of(clean || clean_importance), input.context)?,
            mean: args.loss_mean,
            given: args.given,
        })
    }
}

/// The loss that Mixtral is trained with, over the rows of all layers.
pub(super) fn over_all(layers: &[Basis<'_>]) -> Result<Number> {
    let routed: Vec<Routed<'_>> = layers.iter().map(|basis| basis.routed).collect();
    let experts = |r: &Routed<'_>| r.logits.ncols();
    if let Some(other) = routed.iter().find(|r| experts(r) != experts(&routed[0])) {
        let (expected, found) = (experts(&routed[0]), experts(other));
        return Err(Failure::from(moe_core::Error::Router {
            setting: "a loss over all layers",
            expected: format!("{expected} experts as in the first of them"),
            found: found.to_string(),
        }));
    }
    Ok(Number(LoadBalance::over_all(&routed).value()))
}

#[derive(Serialize)]
pub(super) struct Losses {
    load_balance: Number,
    load_balance_per_sequence: Number,
    load_balance_first_choices: Number,
    sequence_balance: Number,
    /// None where the size of logits is not known, as of [`z`](Self::z).
    sequence_balance_sigmoid: Option<Number>,
    z: Option<Number>,
    importance_cv2: Number,
    entropy: Number,
}

/// A number, as the word "nan", "inf" or "-inf" where JSON has none.
#[derive(Clone, Copy)]
pub(super) struct Number(pub(super) f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            x if x.is_finite() => serializer.serialize_f64(x),
            x if x.is_nan() => serializer.serialize_str("nan"),
            x => serializer.serialize_str(if x > 0.0 { "inf" } else { "-inf" }),
        }
    }
}

impl Losses {
    pub(super) fn of(basis: &Basis<'_>) -> Self {
        let (routed, input) = (&basis.routed, basis.routed.input());
        let by_tokens = basis.mean == LossMean::Tokens;
        let balance =
            |loss: LoadBalance<'_>| Number(if by_tokens { loss.weighted_by_tokens() } else { loss }.value());
        let sequence = |affinity| {
            let loss = SequenceBalance::of(routed, affinity);
            Number(if by_tokens { loss.weighted_by_tokens() } else { loss }.value())
        };
        let sized = basis.given != GivenAs::Probabilities;
        Self {
            load_balance: balance(LoadBalance::over_all(std::slice::from_ref(routed))),
            load_balance_per_sequence: balance(LoadBalance::per_sequence(routed)),
            load_balance_first_choices: balance(LoadBalance::of_first_choices(routed)),
            sequence_balance: sequence(Affinity::Softmax),
            sequence_balance_sigmoid: sized.then(|| sequence(Affinity::Sigmoid)),
            z: sized.then(|| Number(ZLoss::of(&input).value())),
            importance_cv2: Number(Importance::of(&basis.importance).value()),
            entropy: Number(Entropy::of(&input).value()),
        }
    }

    pub(super) fn load_balance(&self) -> Number {
        self.load_balance
    }

    /// None where a loss is not defined.
    pub(super) fn named(&self) -> [(&'static str, Option<Number>); 8] {
        [
            ("load_balance", Some(self.load_balance)),
            ("load_balance_per_sequence", Some(self.load_balance_per_sequence)),
            ("load_balance_first_choices", Some(self.load_balance_first_choices)),
            ("sequence_balance", Some(self.sequence_balance)),
            ("sequence_balance_sigmoid", self.sequence_balance_sigmoid),
            ("z", self.z),
            ("importance_cv2", Some(self.importance_cv2)),
            ("entropy", Some(self.entropy)),
        ]
    }
}
