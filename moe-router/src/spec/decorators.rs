//! Routers around another one.

use moe_core::{Error, Result, Router};

use super::RouterEntry;
use super::catalogue::{self, LEAST, MULTIPLE, PLACES, ROUNDING, Setting};
use super::settings::{Kind, Settings};
use crate::{
    Capacity, Capped, Dense, ExpertScales, MappedLogits, Perturbed, RandomSecond, Renormalized, SkipLight,
    WithoutNulls,
};

pub(super) const ENTRIES: &[RouterEntry] = &[
    RouterEntry {
        name: "capped",
        about: "as far as experts have places",
        paper: "2006.16668 (GShard); 2101.03961 (Switch); 2106.05974 (V-MoE)",
        locality: "batch; causal with places, turn=token, by position, of a sequence",
        may_drop: true,
        decorates: true,
        constructor: "Capped::new(inner, capacity)?",
        example: "capped(top-k:k=2):factor=1.25",
        settings: &[
            Setting::optional("factor", Kind::Number, "places of an expert over the choices an expert"),
            Setting::or(
                "of",
                Kind::Word(&["choices", "tokens"]),
                "choices",
                "what the factor multiplies: choices or tokens an expert",
            )
            .only("with factor", |s| s.has("factor")),
            PLACES,
            ROUNDING,
            LEAST,
            MULTIPLE,
            Setting::or(
                "priority",
                Kind::Word(&["position", "score", "own-score", "random"]),
                "position",
                "which tokens come first; own-score: which choices of an expert, by their weights",
            ),
            Setting::or(
                "turn",
                Kind::Word(&["rank", "token"]),
                "rank",
                "all first choices before all second ones, or token by token",
            )
            .only("without priority=own-score", |s| s.word("priority") != "own-score"),
            Setting::or(
                "overflow",
                Kind::Word(&["refuse", "reroute"]),
                "refuse",
                "what becomes of a choice without a place",
            ),
            Setting::or(
                "scope",
                Kind::Word(&["sequence", "call"]),
                "sequence",
                "whose tokens share the places: each sequence's, or all of a call (a micro-batch)",
            ),
        ],
        build: capped,
    },
    RouterEntry {
        name: "renormalized",
        about: "weights divided by their sum",
        paper: "2207.04672 (NLLB)",
        locality: "inner",
        may_drop: false,
        decorates: true,
        constructor: "Renormalized::new(inner)",
        example: "renormalized(top-k:k=2,weights=all)",
        settings: &[],
        build: |_, inner| Ok(Box::new(Renormalized::new(some(inner)))),
    },
    RouterEntry {
        name: "gaussian-noise",
        about: "on logits with normal noise",
        paper: "2106.05974 (V-MoE)",
        locality: "inner",
        may_drop: false,
        decorates: true,
        constructor: "Perturbed::gaussian(inner, std)?",
        example: "gaussian-noise(top-k:k=2):std=0.125",
        settings: &[Setting::required("std", Kind::Single, "standard deviation")],
        build: |s, inner| Ok(Box::new(Perturbed::gaussian(some(inner), s.single("std"))?)),
    },
    RouterEntry {
        name: "learned-noise",
        about: "on logits with normal noise of a learned size",
        paper: "1701.06538 (Shazeer et al.)",
        locality: "inner",
        may_drop: false,
        decorates: true,
        constructor: "Perturbed::learned(inner)",
        example: "learned-noise(top-k:k=2)",
        settings: &[],
        build: |_, inner| Ok(Box::new(Perturbed::learned(some(inner)))),
    },
    RouterEntry {
        name: "jitter",
        about: "on logits times a number near 1",
        paper: "2101.03961 (Switch)",
        locality: "inner",
        may_drop: false,
        decorates: true,
        constructor: "Perturbed::jitter(inner, epsilon)?",
        example: "jitter(top-k:k=1,weights=all):epsilon=0.01",
        settings: &[Setting::required("epsilon", Kind::Single, "how far from 1, at most")],
        build: |s, inner| Ok(Box::new(Perturbed::jitter(some(inner), s.single("epsilon"))?)),
    },
    RouterEntry {
        name: "random-second",
        about: "later choices kept by chance, in proportion to weight",
        paper: "2006.16668 (GShard)",
        locality: "inner",
        may_drop: false,
        decorates: true,
        constructor: "RandomSecond::new(inner)",
        example: "random-second(renormalized(top-k:k=2,weights=all))",
        settings: &[Setting::or("threshold", Kind::Single, "0.5", "the weight from which a choice is sure")],
        build: |s, inner| Ok(Box::new(RandomSecond::new(some(inner)).with_threshold(s.single("threshold"))?)),
    },
    RouterEntry {
        name: "skip-light",
        about: "without choices that weigh little beside the greatest",
        paper: "2402.14800 (NAEE); 2202.08906 (ST-MoE)",
        locality: "inner",
        may_drop: false,
        decorates: true,
        constructor: "SkipLight::by_ratio(inner, ratio)?",
        example: "skip-light(top-k:k=2):ratio=0.5",
        settings: &[
            Setting::optional("ratio", Kind::Single, "the least, as a share of the token's greatest weight"),
            Setting::optional("weight", Kind::Single, "the least, in place of a ratio"),
            Setting::or("keep", Kind::Whole, "1", "first choices that always stay; one does in any case"),
        ],
        build: skip_light,
    },
    RouterEntry {
        name: "without-nulls",
        about: "without the experts from a number on",
        paper: "2406.13233 (AdaMoE)",
        locality: "inner",
        may_drop: false,
        decorates: true,
        constructor: "WithoutNulls::new(inner, true_experts)",
        example: "without-nulls(top-k:k=2):experts=6",
        settings: &[Setting::required("experts", Kind::Whole, "number of true experts")],
        build: |s, inner| Ok(Box::new(WithoutNulls::new(some(inner), s.whole("experts")))),
    },
    RouterEntry {
        name: "scaled-logits",
        about: "on logits times a constant, 1 over a temperature",
        paper: "Muse Spark",
        locality: "inner",
        may_drop: false,
        decorates: true,
        constructor: "MappedLogits::scaled(inner, by)?",
        example: "scaled-logits(top-k:k=2):by=0.5",
        settings: &[Setting::required("by", Kind::Single, "the constant, above 0")],
        build: |s, inner| Ok(Box::new(MappedLogits::scaled(some(inner), s.single("by"))?)),
    },
    RouterEntry {
        name: "soft-capped",
        about: "on logits bounded softly by tanh",
        paper: "Laguna",
        locality: "inner",
        may_drop: false,
        decorates: true,
        constructor: "MappedLogits::soft_capped(inner, cap)?",
        example: "soft-capped(top-k:k=2):cap=30.0",
        settings: &[Setting::required("cap", Kind::Single, "the bound, above 0")],
        build: |s, inner| Ok(Box::new(MappedLogits::soft_capped(some(inner), s.single("cap"))?)),
    },
    RouterEntry {
        name: "steered",
        about: "with experts that every token takes, or none does",
        paper: "2509.09660 (SteerMoE)",
        locality: "inner",
        may_drop: false,
        decorates: true,
        constructor: "MappedLogits::steered(inner, on, off)?",
        example: "steered(top-k:k=2):on=[3],off=[0,5]",
        settings: &[
            Setting::optional("on", Kind::Wholes, "experts above all others"),
            Setting::optional("off", Kind::Wholes, "experts that are masked"),
        ],
        build: |s, inner| Ok(Box::new(MappedLogits::steered(some(inner), s.wholes("on"), s.wholes("off"))?)),
    },
    RouterEntry {
        name: "expert-scales",
        about: "weights times a number of the expert",
        paper: "Gemma 4",
        locality: "inner",
        may_drop: false,
        decorates: true,
        constructor: "ExpertScales::new(inner, scales)?",
        example: "expert-scales(top-k:k=2,weights=renormalized):scales=[0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5]",
        settings: &[Setting::required("scales", Kind::Singles, "one for each expert")],
        build: |s, inner| Ok(Box::new(ExpertScales::new(some(inner), s.singles("scales"))?)),
    },
];

/// The parser gives every decorator a router.
fn some(inner: Option<Box<dyn Router>>) -> Box<dyn Router> {
    inner.unwrap_or_else(|| Box::new(Dense::new()))
}

fn capped(s: Settings<'_>, inner: Option<Box<dyn Router>>) -> Result<Box<dyn Router>> {
    let of = if s.word("of") == "tokens" { Capacity::factor_of_tokens } else { Capacity::factor_of_choices };
    let mut router = Capped::new(some(inner), catalogue::capacity(s, "factor", of)?)?;
    router = match s.word("priority") {
        "score" => router.by_score(),
        "own-score" => router.by_own_score(),
        "random" => router.at_random(),
        _ => router,
    };
    if s.word("turn") == "token" {
        router = router.token_by_token();
    }
    if s.word("overflow") == "reroute" {
        router = router.rerouting();
    }
    if s.word("scope") == "call" {
        router = router.over_call();
    }
    Ok(Box::new(router))
}

fn skip_light(s: Settings<'_>, inner: Option<Box<dyn Router>>) -> Result<Box<dyn Router>> {
    let router = match (s.has("ratio"), s.has("weight")) {
        (true, false) => SkipLight::by_ratio(some(inner), s.single("ratio"))?,
        (false, true) => SkipLight::by_weight(some(inner), s.single("weight"))?,
        (both, _) => {
            let found = if both { "both" } else { "neither" };
            let expected = "one of ratio, weight".into();
            return Err(Error::Router { setting: "least weight", expected, found: found.into() });
        }
    };
    Ok(Box::new(router.keeping(s.whole("keep"))))
}
