//! The [`ScoredTopK`]s: the published ones by name, and the parts they are made of.

use moe_core::Result;

use super::RouterEntry;
use super::catalogue::{BIAS, K, SCALE, Setting};
use super::settings::{Kind, Settings};
use crate::{ExpertGroups, Normalizer, Score, ScoredHash, ScoredTopK};

const GROUPS: Setting = Setting::or("groups", Kind::Whole, "1", "groups of experts, of equal size");
const KEPT: Setting = Setting::or("kept", Kind::Whole, "1", "groups that a token may choose in");
const NORMALIZED: Setting = Setting::or(
    "normalized",
    Kind::Word(&["no", "yes"]),
    "yes",
    "divide by the sum of the chosen (norm_topk_prob)",
);
const SHARED: Setting =
    Setting::or("shared", Kind::Whole, "0", "experts at the end that every token takes besides");
pub(super) const SCORES: Kind = Kind::Word(&["logit", "softmax", "sigmoid", "sqrt-softplus"]);

pub(super) const ENTRIES: &[RouterEntry] = &[
    RouterEntry {
        name: "scored",
        about: "the k greatest scores, in parts: any score, bias, groups, normaliser",
        paper: "",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "ScoredTopK::new(k, score)?",
        example: "scored:k=2,score=sigmoid,divide=sum,epsilon=1e-20",
        settings: &[
            K,
            Setting::required("score", SCORES, "what is chosen by"),
            Setting::optional("weight", SCORES, "what weights are made of, if not of the score"),
            BIAS,
            GROUPS,
            KEPT,
            Setting::or(
                "group-score",
                Kind::Word(&["best", "two-best", "n-best"]),
                "best",
                "of a group: its best score, or the sum of its two, or n, best",
            )
            .only("with groups above 1", |s| s.whole("groups") > 1),
            Setting::or("n", Kind::Whole, "1", "how many best scores of a group are summed")
                .only("with group-score=n-best", |s| s.word("group-score") == "n-best"),
            Setting::or(
                "divide",
                Kind::Word(&["nothing", "softmax", "sum", "at-least", "norm"]),
                "nothing",
                "what weights are divided by",
            ),
            Setting::or("epsilon", Kind::Single, "0.0", "added to a sum; the floor of at-least")
                .only("with divide=sum or divide=at-least", |s| {
                    ["sum", "at-least"].contains(&s.word("divide"))
                }),
            Setting::or("p", Kind::Single, "1.0", "of the norm")
                .only("with divide=norm", |s| s.word("divide") == "norm"),
            SCALE,
            SHARED,
        ],
        build: |s, _| Ok(Box::new(scored(s)?)),
    },
    RouterEntry {
        name: "dbrx",
        about: "softmax, divided by a p-norm of the chosen",
        paper: "DBRX",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "ScoredTopK::dbrx(k, norm_p)?",
        example: "dbrx:k=4,p=1.0",
        settings: &[
            K,
            Setting::optional("p", Kind::Single, "of the norm; without it, weights are the softmax"),
        ],
        build: |s, _| Ok(Box::new(ScoredTopK::dbrx(s.whole("k"), s.has("p").then(|| s.single("p")))?)),
    },
    RouterEntry {
        name: "deepseek-v2",
        about: "softmax, device-limited",
        paper: "2405.04434 (DeepSeek-V2)",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "ScoredTopK::deepseek_v2(k, scale)?",
        example: "deepseek-v2:k=6,groups=8,kept=3,scale=16.0",
        settings: &[K, GROUPS, KEPT, SCALE],
        build: |s, _| {
            let router = ScoredTopK::deepseek_v2(s.whole("k"), s.single("scale"))?;
            Ok(Box::new(router.within(ExpertGroups::by_best(s.whole("groups"), s.whole("kept"))?)))
        },
    },
    RouterEntry {
        name: "pangu-pro",
        about: "softmax, equally many in each group",
        paper: "2505.21411 (Pangu Pro MoE)",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "ScoredTopK::pangu_pro(k, groups)?",
        example: "pangu-pro:k=8,groups=8",
        settings: &[
            K,
            Setting::required("groups", Kind::Whole, "groups of experts, each of which has k/groups choices"),
        ],
        build: |s, _| Ok(Box::new(ScoredTopK::pangu_pro(s.whole("k"), s.whole("groups"))?)),
    },
    RouterEntry {
        name: "deepseek-v3",
        about: "sigmoid, chosen with a bias, node-limited",
        paper: "2412.19437 (DeepSeek-V3)",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "ScoredTopK::deepseek_v3(k, bias, groups, scale)?",
        example: "deepseek-v3:k=8,groups=8,kept=4,scale=2.5",
        settings: &[K, BIAS, GROUPS, KEPT, NORMALIZED, SCALE],
        build: |s, _| {
            let groups = ExpertGroups::by_two_best(s.whole("groups"), s.whole("kept"))?;
            let router = ScoredTopK::deepseek_v3(s.whole("k"), s.singles("bias"), groups, s.single("scale"))?;
            normalized(s, router)
        },
    },
    RouterEntry {
        name: "deepseek-v4",
        about: "square root of softplus, chosen with a bias",
        paper: "2606.19348 (DeepSeek-V4)",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "ScoredTopK::deepseek_v4(k, bias, scale)?",
        example: "deepseek-v4:k=6,scale=1.5",
        settings: &[K, BIAS, SCALE],
        build: |s, _| {
            Ok(Box::new(ScoredTopK::deepseek_v4(s.whole("k"), s.singles("bias"), s.single("scale"))?))
        },
    },
    RouterEntry {
        name: "deepseek-v4-hash",
        about: "experts by the token's vocabulary id, square root of softplus",
        paper: "2606.19348 (DeepSeek-V4)",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "ScoredHash::deepseek_v4(k, scale)?",
        example: "deepseek-v4-hash:k=6,scale=1.5",
        settings: &[
            K,
            Setting::or("seed", Kind::Whole, "0", "of a random function")
                .only("without table", |s| !s.has("table")),
            Setting::optional(
                "table",
                Kind::Wholes,
                "the k experts of each id, in place of a random function",
            ),
            SCALE,
        ],
        build: |s, _| {
            let router = ScoredHash::deepseek_v4(s.whole("k"), s.single("scale"))?;
            Ok(Box::new(match s.has("table") {
                true => router.table(s.wholes("table"))?,
                false => router.seeded(s.seed("seed")),
            }))
        },
    },
    RouterEntry {
        name: "afmoe",
        about: "sigmoid, chosen with a bias",
        paper: "2602.17004 (AFMoE)",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "ScoredTopK::afmoe(k, bias, scale)?",
        example: "afmoe:k=8,scale=2.826",
        settings: &[K, BIAS, SCALE],
        build: |s, _| Ok(Box::new(ScoredTopK::afmoe(s.whole("k"), s.singles("bias"), s.single("scale"))?)),
    },
    RouterEntry {
        name: "minimax-m2",
        about: "sigmoid, chosen with a bias, no guard",
        paper: "MiniMax-M2",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "ScoredTopK::minimax_m2(k, bias)?",
        example: "minimax-m2:k=8",
        settings: &[K, BIAS],
        build: |s, _| Ok(Box::new(ScoredTopK::minimax_m2(s.whole("k"), s.singles("bias"))?)),
    },
    RouterEntry {
        name: "laguna",
        about: "as minimax-m2",
        paper: "Laguna",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "ScoredTopK::laguna(k, bias)?",
        example: "laguna:k=8",
        settings: &[K, BIAS],
        build: |s, _| Ok(Box::new(ScoredTopK::laguna(s.whole("k"), s.singles("bias"))?)),
    },
    RouterEntry {
        name: "inkling",
        about: "as minimax-m2, shared experts in the divisor",
        paper: "Inkling",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "ScoredTopK::inkling(k, shared, bias, scale)?",
        example: "inkling:k=6,scale=2.5,shared=2",
        settings: &[K, BIAS, SCALE, SHARED],
        build: |s, _| {
            let (k, shared) = (s.whole("k"), s.whole("shared"));
            Ok(Box::new(ScoredTopK::inkling(k, shared, s.singles("bias"), s.single("scale"))?))
        },
    },
    RouterEntry {
        name: "lfm2",
        about: "sigmoid, guarded by 1e-6",
        paper: "LFM2-MoE",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "ScoredTopK::lfm2(k, scale)?",
        example: "lfm2:k=4",
        settings: &[K, BIAS, NORMALIZED, SCALE],
        build: |s, _| {
            let router = ScoredTopK::lfm2(s.whole("k"), s.single("scale"))?;
            normalized(s, router.with_bias(s.singles("bias"))?)
        },
    },
    RouterEntry {
        name: "ernie-4.5",
        about: "softmax, chosen with a bias, divided by at least a floor",
        paper: "ERNIE 4.5",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "ScoredTopK::ernie_4_5(k, bias, norm_min)?",
        example: "ernie-4.5:k=6",
        settings: &[K, BIAS, Setting::or("floor", Kind::Single, "1e-12", "least divisor")],
        build: |s, _| {
            Ok(Box::new(ScoredTopK::ernie_4_5(s.whole("k"), s.singles("bias"), s.single("floor"))?))
        },
    },
    RouterEntry {
        name: "longcat-flash",
        about: "softmax, chosen with a bias, never divided",
        paper: "2509.01322 (LongCat-Flash)",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "ScoredTopK::longcat_flash(k, bias, scale)?",
        example: "longcat-flash:k=12,scale=6.0",
        settings: &[K, BIAS, SCALE],
        build: |s, _| {
            Ok(Box::new(ScoredTopK::longcat_flash(s.whole("k"), s.singles("bias"), s.single("scale"))?))
        },
    },
    RouterEntry {
        name: "llama4",
        about: "sigmoid of the chosen, for the experts' input",
        paper: "Llama 4",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "ScoredTopK::llama4(k)?",
        example: "llama4:k=1",
        settings: &[K],
        build: |s, _| Ok(Box::new(ScoredTopK::llama4(s.whole("k"))?)),
    },
    RouterEntry {
        name: "cohere2",
        about: "sigmoid of the chosen, divided by their sum",
        paper: "Cohere 2 MoE",
        locality: "token",
        may_drop: false,
        decorates: false,
        constructor: "ScoredTopK::cohere2(k)?",
        example: "cohere2:k=8",
        settings: &[K],
        build: |s, _| Ok(Box::new(ScoredTopK::cohere2(s.whole("k"))?)),
    },
];

/// The parts one by one.
/// The score of a word of [`SCORES`].
pub(super) fn score(word: &str) -> Score {
    match word {
        "softmax" => Score::Softmax,
        "sigmoid" => Score::Sigmoid,
        "sqrt-softplus" => Score::SqrtSoftplus,
        _ => Score::Logit,
    }
}

fn scored(s: Settings<'_>) -> Result<ScoredTopK> {
    let score = |name| score(s.word(name));
    let epsilon = s.single("epsilon");
    let normalizer = match s.word("divide") {
        "softmax" => Normalizer::Softmax,
        "sum" => Normalizer::Sum { epsilon },
        "at-least" => Normalizer::SumAtLeast { floor: epsilon },
        "norm" => Normalizer::Norm { p: s.single("p") },
        _ => Normalizer::None,
    };
    let best = match s.word("group-score") {
        "best" => 1,
        "two-best" => 2,
        _ => s.whole("n"),
    };
    let groups = ExpertGroups::by_sum_of_best(s.whole("groups"), s.whole("kept"), best)?;
    let mut router = ScoredTopK::new(s.whole("k"), score("score"))?;
    if s.has("weight") {
        router = router.weighed_by(score("weight"));
    }
    let router = router.with_bias(s.singles("bias"))?.within(groups);
    Ok(router.normalized(normalizer)?.scaled(s.single("scale"))?.with_shared(s.whole("shared")))
}

fn normalized(s: Settings<'_>, router: ScoredTopK) -> Result<Box<dyn moe_core::Router>> {
    Ok(Box::new(if s.word("normalized") == "no" { router.normalized(Normalizer::None)? } else { router }))
}
