//! Routers as text: what parses, what is said of what does not, and that the catalogue is complete.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

mod errors;

use moe_core::{Assignments, Locality, RouteInput, Router, RoutingPlan, TokenContext, TokenRows};
use moe_router::{RouterEntry, RouterSpec, Setting, TopK};
use ndarray::Array2;
use proptest::prelude::*;

#[path = "../../examples/catalogue.rs"]
#[allow(dead_code, reason = "an example has a main")]
mod example;

/// Numbers of every size, and the words that come between them.
fn value(setting: &Setting) -> BoxedStrategy<String> {
    let single = || any::<f32>().prop_filter("a number", |x| !x.is_nan()).prop_map(|x| format!("{x:?}"));
    let list = |items: BoxedStrategy<String>| {
        proptest::collection::vec(items, 0..5).prop_map(|items| format!("[{}]", items.join(", ")))
    };
    match &*setting.values() {
        kind if kind.starts_with("whole number") => {
            prop_oneof![any::<u64>(), 0u64..20].prop_map(|n| n.to_string()).boxed()
        }
        "number" => prop_oneof![single(), (0u32..200).prop_map(|n| (f64::from(n) / 8.0).to_string())].boxed(),
        "[numbers]" => list(single().boxed()).boxed(),
        "[whole numbers]" => list(any::<u32>().prop_map(|n| n.to_string()).boxed()).boxed(),
        words => {
            let words: Vec<String> = words.split('|').map(str::to_owned).collect();
            proptest::sample::select(words).boxed()
        }
    }
}

/// Some of the settings of a router.
fn settings(entry: &'static RouterEntry) -> BoxedStrategy<String> {
    let each: Vec<_> = entry
        .settings
        .iter()
        .map(|setting| {
            let text = value(setting).prop_map(|value| format!("{}={value}", setting.name));
            if setting.is_required() {
                text.prop_map(Some).boxed()
            } else {
                proptest::option::weighted(0.4, text).boxed()
            }
        })
        .collect();
    each.prop_map(|given| given.into_iter().flatten().collect::<Vec<_>>().join(","))
        .prop_map(|settings| if settings.is_empty() { settings } else { format!(":{settings}") })
        .boxed()
}

/// Texts with the form of a spec; some have values that their routers do not accept.
fn specs() -> impl Strategy<Value = String> {
    let of = |decorates: bool| {
        let entries: Vec<_> = RouterSpec::catalogue().filter(|e| e.decorates == decorates).collect();
        proptest::sample::select(entries).prop_flat_map(|e| settings(e).prop_map(|s| (e.name, s)))
    };
    let strategies = of(false).prop_map(|(name, settings)| format!("{name}{settings}"));
    strategies.prop_recursive(3, 4, 1, move |inner| {
        (of(true), inner).prop_map(|((name, settings), inner)| format!("{name}({inner}){settings}"))
    })
}

/// Routes a few logits, the first so many of which are negative infinity. What comes of it is a plan or an error.
fn try_out(spec: &RouterSpec, closed: usize) {
    let mut logits = Array2::from_shape_fn((5, 4), |(t, e)| ((7 * t + 5 * e) % 9) as f32 - 4.0);
    logits.iter_mut().take(closed).for_each(|l| *l = f32::NEG_INFINITY);
    let (ids, rows) = ([0, 1, 2, 3, 4], [1.0; 20]);
    let context = TokenContext::new().with_token_ids(&ids).with_padding(&[false, false, true, false, false]);
    let context = context.with_noise_logits(TokenRows::new(&rows, 4).unwrap());
    let mut out = Assignments::new();
    out.reset(5, 4).unwrap();
    let input = RouteInput::new(logits.view(), context).unwrap();
    if spec.build().unwrap().route(&input, &mut out).is_ok() {
        let _ = RoutingPlan::new().seal(&out);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn what_is_printed_parses_back(text in specs()) {
        if let Ok(spec) = text.parse::<RouterSpec>() {
            let printed = spec.to_string();
            let again: RouterSpec = printed.parse().unwrap();
            prop_assert_eq!(&again, &spec, "{}", &text);
            prop_assert_eq!(again.to_string(), printed);
            prop_assert!(spec.build().is_ok(), "{}", &text);
        }
    }

    #[test]
    fn what_is_built_routes_or_says_why_not(text in specs(), closed in 0usize..12) {
        if let Ok(spec) = text.parse::<RouterSpec>() {
            try_out(&spec, closed);
        }
    }

    #[test]
    fn no_text_panics(text in "[a-z0-9:=,()\\[\\] .\u{e9}-]{0,40}") {
        if let Err(error) = text.parse::<RouterSpec>() {
            prop_assert!(text.is_char_boundary(error.at()));
        }
    }

    #[test]
    fn no_cut_or_change_of_a_spec_panics(text in specs(), at in any::<prop::sample::Index>(), by in any::<char>()) {
        let cuts: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
        let at = *at.get(&cuts);
        for changed in [text[..at].to_owned(), text[at..].to_owned(), format!("{}{by}{}", &text[..at], &text[at..])] {
            if let Err(error) = changed.parse::<RouterSpec>() {
                prop_assert!(changed.is_char_boundary(error.at()), "{changed}: {error}");
            }
        }
    }
}

#[test]
fn every_example_builds_routes_and_keeps_its_promises() {
    let logits = Array2::from_shape_fn((20, 16), |(t, e)| ((7 * t + 5 * e * e) % 23) as f32 / 8.0 - 1.0);
    let (ids, noise) = ((0..20).collect::<Vec<u32>>(), vec![0.5; 20 * 16]);
    for entry in RouterSpec::catalogue() {
        let spec: RouterSpec = entry.example.parse().unwrap_or_else(|e| panic!("{}: {e}", entry.name));
        assert_eq!(spec.to_string(), entry.example, "examples are canonical");
        assert_eq!(spec.entry().name, entry.name, "an example of another router");
        assert_eq!(spec.inner().is_some(), entry.decorates);
        // Of a file that there is not.
        let router = match spec.trace() {
            Some(_) => continue,
            None => spec.build().unwrap(),
        };
        let promised = match entry.locality.split(';').next() {
            Some("token") => Locality::Token,
            Some("batch") => Locality::Batch,
            Some("inner") => spec.inner().unwrap().build().unwrap().locality(),
            other => panic!("{}: {other:?}", entry.name),
        };
        assert_eq!(router.locality(), promised, "{}", entry.name);
        let experts = if ["threshold", "expert-scales"].contains(&entry.name) { 8 } else { 16 };
        let logits = logits.slice(ndarray::s![.., ..experts]);
        let rows = TokenRows::new(&noise[..20 * experts], experts).unwrap();
        let context = TokenContext::new().with_token_ids(&ids).with_noise_logits(rows);
        let mut out = Assignments::new();
        out.reset(20, experts).unwrap();
        router.route(&RouteInput::new(logits, context).unwrap(), &mut out).unwrap();
        assert!(!out.granted().is_empty(), "{}", entry.name);
        assert!(entry.may_drop || out.refused().is_empty(), "{}", entry.name);
        for setting in entry.settings {
            assert!(!setting.about.is_empty() && !setting.values().is_empty());
            let Some(default) = setting.default() else { continue };
            // A default is a value of its own setting, and not printed.
            if entry.example.contains(&format!("{}=", setting.name)) {
                continue;
            }
            let joint = if entry.example.trim_end_matches(')').contains(')') || !entry.decorates {
                if entry.example.ends_with(entry.name) { ':' } else { ',' }
            } else {
                ':'
            };
            let text = format!("{}{joint}{}={default}", entry.example, setting.name);
            assert_eq!(text.parse::<RouterSpec>().unwrap().to_string(), entry.example, "{text}");
        }
    }
}

/// Whatever number a setting is given, a router is refused or routes: it neither hangs nor asks for memory without end.
#[test]
fn no_number_is_too_much() {
    const FURTHEST: [&str; 14] = [
        "0",
        "1",
        "1000",
        "1001",
        "4294967295",
        "4294967296",
        "9223372036854775807",
        "18446744073709551615",
        "-1",
        "-inf",
        "inf",
        "1e-45",
        "3e38",
        "-3e38",
    ];
    let (mut routed, mut refused) = (0, 0);
    for entry in RouterSpec::catalogue() {
        let inner = if entry.decorates { "(top-k:k=1)" } else { "" };
        for setting in entry.settings {
            // The settings of the example in place of those that must be given, but for the one tried.
            let given = entry.example.rsplit_once(':').map_or("", |(_, given)| given.trim_end_matches(')'));
            let others = given.split(',').filter(|pair| {
                entry.settings.iter().any(|s| {
                    s.is_required() && s.name != setting.name && pair.starts_with(&format!("{}=", s.name))
                })
            });
            let others: Vec<&str> = others.collect();
            for number in FURTHEST {
                let value =
                    if setting.values().starts_with('[') { format!("[{number}]") } else { number.into() };
                let text = format!("{}{inner}:{},{}={value}", entry.name, others.join(","), setting.name);
                match text.replace(":,", ":").parse::<RouterSpec>() {
                    Ok(spec) => {
                        try_out(&spec, 0);
                        routed += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
        }
    }
    assert!(routed > 200 && refused > 200, "{routed} {refused}");
    for (text, limit) in [("sinkhorn:k=1", 1000), ("capped-expert-choice:capacity=0.5,most=4", 1000)] {
        assert!(format!("{text},iterations={limit}").parse::<RouterSpec>().is_ok());
        assert!(format!("{text},iterations={}", limit + 1).parse::<RouterSpec>().is_err());
    }
}

/// Every public type of the crate is behind an entry, but for those that route nothing.
#[test]
fn every_router_is_in_the_catalogue() {
    let none = [
        "BiasBalancer",
        "quantile_biases",
        "Capacity",
        "LogitForm",
        "Rounding",
        "ThresholdEma",
        "CosineGate",
        "SoftCapped",
        "ExpertGroups",
        "Normalizer",
        "Score",
        "Normalization",
        "soft_combine_weights",
        "soft_dispatch_weights",
        "RouterEntry",
        "RouterSpec",
        "Setting",
        "SpecError",
    ];
    let source = include_str!("../../src/lib.rs");
    let uses = source.split("pub use ").skip(1).map(|rest| rest.split(';').next().unwrap());
    let names = uses.flat_map(|path| path.rsplit("::").next().unwrap().split(['{', '}', ',', '\n', ' ']));
    let mut routers = 0;
    for name in names.filter(|name| !name.is_empty() && !none.contains(name)) {
        let behind = |entry: &RouterEntry| entry.constructor.starts_with(&format!("{name}::"));
        assert!(RouterSpec::catalogue().any(behind), "{name} has no entry");
        routers += 1;
    }
    assert!(routers >= 18, "{routers}");
    let mut entries: Vec<_> = RouterSpec::catalogue().map(|entry| entry.name).collect();
    entries.sort_unstable();
    entries.dedup();
    assert_eq!(entries.len(), RouterSpec::catalogue().count(), "a name twice");
}

/// The page has each router, and its table is what the example prints.
#[test]
fn the_page_is_of_this_catalogue() {
    let page = include_str!("../routing.md");
    for entry in RouterSpec::catalogue() {
        assert!(page.contains(&format!("**`{}`**", entry.name)), "{} is missing", entry.name);
    }
    let table = example::table().unwrap();
    assert!(page.contains(&table), "cargo run -p moe-router --example catalogue\n{table}");
}

/// What is as by default does what it would do anyway.
#[test]
fn defaults_may_be_written_out() {
    for (text, canonical) in [
        (
            "scored:k=2,score=sigmoid,divide=nothing,epsilon=0,p=1,group-score=best",
            "scored:k=2,score=sigmoid",
        ),
        ("hash:seed=0,table=[1]", "hash:table=[1]"),
        ("capped(relu):places=2,of=choices,rounding=up", "capped(relu):places=2"),
    ] {
        assert_eq!(text.parse::<RouterSpec>().unwrap().to_string(), canonical);
    }
}

/// A condition names settings that there are.
#[test]
fn conditions_are_of_the_same_router() {
    let mut conditions = 0;
    for entry in RouterSpec::catalogue() {
        for when in entry.settings.iter().filter_map(Setting::condition) {
            let others: Vec<&str> = when.split([' ', '=']).collect();
            let named = entry.settings.iter().any(|s| others.contains(&s.name));
            assert!(named, "{}: only {when}", entry.name);
            conditions += 1;
        }
    }
    assert_eq!(conditions, 11);
}

#[test]
fn a_built_router_is_the_constructed_one() {
    let logits = Array2::from_shape_fn((9, 8), |(t, e)| ((3 * t + 5 * e) % 11) as f32);
    let route = |router: &dyn Router| {
        let mut out = Assignments::new();
        out.reset(9, 8).unwrap();
        router.route(&RouteInput::new(logits.view(), TokenContext::new()).unwrap(), &mut out).unwrap();
        (out.granted().to_vec(), out.refused().to_vec())
    };
    use moe_router::{
        Capacity, Capped, ExpertChoice, ExpertGroups, Normalization, Renormalized, Rounding, Score,
        ScoredTopK,
    };
    let bias = vec![0.5, 0.0, 0.0, 0.0, 0.0, -0.5, 0.0, 1.0];
    let capacity = Capacity::factor_of_tokens(1.0).rounded(Rounding::HalfEven).at_least(2);
    let inner = TopK::new(3).unwrap().normalized(Normalization::OverAll);
    let three = || Capped::new(inner, Capacity::absolute(3)).unwrap();
    let pairs: [(&str, Box<dyn Router>); 6] = [
        ("capped(top-k:k=3,weights=all):places=3,priority=own-score", Box::new(three().by_own_score())),
        ("capped(top-k:k=3,weights=all):places=3,priority=random", Box::new(three().at_random())),
        ("capped(top-k:k=3,weights=all):places=3,scope=call", Box::new(three().over_call())),
        (
            "expert-choice:places=2,score=sigmoid",
            Box::new(ExpertChoice::new(Capacity::absolute(2)).unwrap().scored_by(Score::Sigmoid)),
        ),
        (
            "renormalized(capped(top-k:k=3,weights=all):factor=1.0,of=tokens,rounding=half-even,min=2,priority=score,turn=token)",
            Box::new(Renormalized::new(Capped::new(inner, capacity).unwrap().by_score().token_by_token())),
        ),
        (
            "deepseek-v3:k=2,groups=4,kept=2,scale=2.5",
            Box::new(
                ScoredTopK::deepseek_v3(2, bias.clone(), ExpertGroups::by_two_best(4, 2).unwrap(), 2.5)
                    .unwrap(),
            ),
        ),
    ];
    for (text, router) in pairs {
        let mut spec: RouterSpec = text.parse().unwrap();
        if text.starts_with("deepseek") {
            spec = spec.with_bias(&bias).unwrap();
            assert!(spec.clone().with_bias(&bias).is_err(), "a second bias");
            assert_eq!(spec.to_string().parse::<RouterSpec>().unwrap(), spec);
        } else {
            assert!(spec.clone().with_bias(&bias).is_err(), "no router that takes one");
        }
        assert_eq!(route(&*spec.build().unwrap()), route(&*router), "{text}");
    }
}

#[cfg(feature = "serde")]
#[test]
fn serde_has_it_as_a_string() {
    let spec: RouterSpec = serde_json::from_str("\"capped( top-k:k=2 ):factor=1\"").unwrap();
    assert_eq!(serde_json::to_string(&spec).unwrap(), "\"capped(top-k:k=2):factor=1.0\"");
    let error = serde_json::from_str::<RouterSpec>("\"top-k\"").unwrap_err();
    assert!(error.to_string().contains("router, byte 5"), "{error}");
}
