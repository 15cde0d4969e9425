//! Routers that are not [`ScoredTopK`](crate::ScoredTopK)s and wrap no other.

use super::RouterEntry;
use super::catalogue::{self, K, LEAST, MULTIPLE, PLACES, ROUNDING, Setting};
use super::scored::{self, SCORES};
use super::settings::Kind;
use crate::trace::{ReplayFile, ReplayWeights};
use crate::{
    AdaptiveK, Base, Capacity, CappedExpertChoice, Dense, ExpertChoice, ExpertThreshold, GumbelSecond, Hash,
    Normalization, RandomChoice, Relu, Sinkhorn, SparseMixer, TopK, TopP,
};

/// Ten times the default. A text from outside must not keep a machine busy: each iteration passes over all logits.
const ITERATIONS: Kind = Kind::UpTo(1000);

pub(super) const ENTRIES: &[RouterEntry] = &[
    RouterEntry {
        name: "top-k",
        about: "the k greatest logits, weighted by softmax",
        paper: "2401.04088 (Mixtral); 2101.03961 (Switch)",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "TopK::new(k)?.normalized(..)",
        example: "top-k:k=2",
        settings: &[
            K,
            Setting::or(
                "weights",
                Kind::Word(&["chosen", "all", "renormalized"]),
                "chosen",
                "softmax over the chosen, over all, or over all and then divided by their sum",
            ),
        ],
        build: |s, _| {
            let normalization = match s.word("weights") {
                "all" => Normalization::OverAll,
                "renormalized" => Normalization::OverAllRenormalized,
                _ => Normalization::OverChosen,
            };
            Ok(Box::new(TopK::new(s.whole("k"))?.normalized(normalization)))
        },
    },
    RouterEntry {
        name: "top-p",
        about: "the fewest experts whose probabilities reach p",
        paper: "2403.07652 (Huang et al.)",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "TopP::new(p)?",
        example: "top-p:p=0.6",
        settings: &[Setting::required("p", Kind::Single, "the sum to reach, above 0, at most 1")],
        build: |s, _| Ok(Box::new(TopP::new(s.single("p"))?)),
    },
    RouterEntry {
        name: "adaptive-k",
        about: "the k most probable experts, k by the entropy of the probabilities",
        paper: "Adaptive-K",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "AdaptiveK::new(ks, at)?",
        example: "adaptive-k:ks=[1,2,4],at=[0.6,1.2]",
        settings: &[
            Setting::required("ks", Kind::Wholes, "numbers of experts, one more than entropies"),
            Setting::required(
                "at",
                Kind::Singles,
                "ascending entropies, in nats, from which the next applies",
            ),
        ],
        build: |s, _| {
            let ks: Vec<usize> = s.wholes("ks").into_iter().map(|k| k as usize).collect();
            Ok(Box::new(AdaptiveK::new(ks, s.singles("at"))?))
        },
    },
    RouterEntry {
        name: "relu",
        about: "every expert with a positive logit, weighted by it",
        paper: "2412.14711 (ReMoE)",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "Relu::new()",
        example: "relu",
        settings: &[],
        build: |_, _| Ok(Box::new(Relu::new())),
    },
    RouterEntry {
        name: "dense",
        about: "every expert, weighted by softmax",
        paper: "",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "Dense::new()",
        example: "dense",
        settings: &[],
        build: |_, _| Ok(Box::new(Dense::new())),
    },
    RouterEntry {
        name: "threshold",
        about: "every expert whose sigmoid is above its threshold",
        paper: "2603.11535 (Expert Threshold)",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "ExpertThreshold::new(thresholds)?",
        example: "threshold:at=[0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5]",
        settings: &[Setting::required(
            "at",
            Kind::Singles,
            "a threshold for each expert, on the scale of sigmoid",
        )],
        build: |s, _| Ok(Box::new(ExpertThreshold::new(s.singles("at"))?)),
    },
    RouterEntry {
        name: "sparse-mixer",
        about: "two experts, each weighed by softmax among its near rivals",
        paper: "2409.12136 (GRIN, Phi-3.5-MoE)",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "SparseMixer::new(epsilon)?",
        example: "sparse-mixer",
        settings: &[
            Setting::or("epsilon", Kind::Single, "0.01", "rivals are within a share 2·epsilon"),
            Setting::or(
                "choice",
                Kind::Word(&["greatest", "sampled"]),
                "greatest",
                "the greatest logit, or drawn as in training",
            ),
        ],
        build: |s, _| {
            let router = SparseMixer::new(s.single("epsilon"))?;
            Ok(Box::new(if s.word("choice") == "sampled" { router.sampling() } else { router }))
        },
    },
    RouterEntry {
        name: "gumbel-second",
        about: "the most probable expert, and a second drawn by probability",
        paper: "2006.16668 (GShard), as DeepSpeed has it",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "GumbelSecond::new()",
        example: "gumbel-second",
        settings: &[],
        build: |_, _| Ok(Box::new(GumbelSecond::new())),
    },
    RouterEntry {
        name: "hash",
        about: "a fixed function of the token's vocabulary id, with weight 1",
        paper: "2106.04426 (Hash layers)",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "Hash::new(seed)",
        example: "hash",
        settings: &[
            Setting::or("seed", Kind::Whole, "0", "of a random function")
                .only("without table", |s| !s.has("table")),
            Setting::optional("table", Kind::Wholes, "the expert of each id, in place of a random function"),
        ],
        build: |s, _| {
            Ok(Box::new(if s.has("table") {
                Hash::table(s.wholes("table"))
            } else {
                Hash::new(s.seed("seed"))
            }))
        },
    },
    RouterEntry {
        name: "random",
        about: "k different experts at random, each with weight 1/k",
        paper: "",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "RandomChoice::new(k)?",
        example: "random:k=2",
        settings: &[K],
        build: |s, _| Ok(Box::new(RandomChoice::new(s.whole("k"))?)),
    },
    RouterEntry {
        name: "expert-choice",
        about: "each expert takes its best tokens",
        paper: "2202.09368 (Zhou et al.)",
        locality: "batch",
        may_drop: false,
        decorates: false,
        constructor: "ExpertChoice::new(capacity)?",
        example: "expert-choice:capacity=1.25",
        settings: &[
            Setting::optional("capacity", Kind::Number, "places of an expert over tokens an expert, T/E"),
            PLACES,
            ROUNDING,
            LEAST,
            MULTIPLE,
            Setting::or("score", SCORES, "softmax", "what tokens are ranked by, and the weight"),
        ],
        build: |s, _| {
            let capacity = catalogue::capacity(s, "capacity", Capacity::factor_of_tokens)?;
            Ok(Box::new(ExpertChoice::new(capacity)?.scored_by(scored::score(s.word("score")))))
        },
    },
    RouterEntry {
        name: "capped-expert-choice",
        about: "each expert takes its best tokens, a token few experts",
        paper: "2202.09368 (Zhou et al.)",
        locality: "batch",
        may_drop: false,
        decorates: false,
        constructor: "CappedExpertChoice::new(capacity, most)?",
        example: "capped-expert-choice:capacity=1.25,most=2",
        settings: &[
            Setting::optional("capacity", Kind::Number, "places of an expert over tokens an expert, T/E"),
            PLACES,
            ROUNDING,
            LEAST,
            MULTIPLE,
            Setting::required("most", Kind::Whole, "experts of a token, aimed at"),
            Setting::or("entropy", Kind::Single, "0.001", "how much the entropy of the plan counts"),
            Setting::or("iterations", ITERATIONS, "100", "at most"),
        ],
        build: |s, _| {
            let capacity = catalogue::capacity(s, "capacity", Capacity::factor_of_tokens)?;
            let router = CappedExpertChoice::new(capacity, s.whole("most"))?;
            Ok(Box::new(router.entropy(s.single("entropy"))?.iterations(s.whole("iterations"))))
        },
    },
    RouterEntry {
        name: "base",
        about: "one expert a token, equal loads, greatest total score",
        paper: "2103.16716 (BASE layers)",
        locality: "batch",
        may_drop: false,
        decorates: false,
        constructor: "Base::new()",
        example: "base",
        settings: &[],
        build: |_, _| Ok(Box::new(Base::new())),
    },
    RouterEntry {
        name: "sinkhorn",
        about: "the k best after the experts' shares were made equal",
        paper: "2202.01169 (S-BASE)",
        locality: "batch",
        may_drop: false,
        decorates: false,
        constructor: "Sinkhorn::new(k)?",
        example: "sinkhorn:k=1",
        settings: &[K, Setting::or("iterations", ITERATIONS, "100", "at most; 0 leaves the plain k best")],
        build: |s, _| Ok(Box::new(Sinkhorn::new(s.whole("k"))?.iterations(s.whole("iterations")))),
    },
    RouterEntry {
        name: "replay",
        about: "the experts that a route trace has for the token's layer, sequence and position",
        paper: "2510.11370 (R3), with live weights",
        locality: "token",
        may_drop: true,
        decorates: false,
        constructor: "trace::ReplayFile::new(path, weights)",
        example: "replay:trace=book.trace",
        settings: &[
            Setting::required("trace", Kind::Path, "the trace's file, read when it first routes"),
            Setting::or(
                "weights",
                Kind::Word(&["recorded", "live"]),
                "recorded",
                "those of the trace, or softmax over the logits at hand of the recorded experts",
            ),
        ],
        build: |s, _| {
            let weights = match s.word("weights") {
                "live" => ReplayWeights::Live,
                _ => ReplayWeights::Recorded,
            };
            Ok(Box::new(ReplayFile::new(s.path("trace"), weights)))
        },
    },
];
