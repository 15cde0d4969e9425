//! What is said of text that is no router.

use moe_router::RouterSpec;

#[test]
fn errors_point_at_what_is_wrong() {
    let mut failures = vec![];
    for (text, at, message) in [
        ("", 0, "expected the name of a router, one of top-k, top-p"),
        ("  ", 2, "found the end"),
        ("topk:k=2", 0, "found \"topk\""),
        ("top-k", 5, "expected the setting k=<whole number> of top-k, found the end"),
        ("top-k:", 6, "expected one of k, weights, found the end"),
        ("top-k:k", 7, "expected \"=\" and a value, found the end"),
        ("top-k:k=", 8, "expected a whole number, found the end"),
        ("top-k:k=2,", 10, "found the end"),
        ("top-k:k=2 x", 8, "expected a whole number, found \"2 x\""),
        ("top-k:k=+2", 8, "expected a whole number, found \"+2\""),
        ("top-k:k=-1", 8, "expected a whole number, found \"-1\""),
        ("sinkhorn:k=1,iterations=1001", 24, "expected a whole number, at most 1000, found \"1001\""),
        (
            "renormalized(capped-expert-choice:capacity=1,most=2,iterations=18446744073709551615)",
            63,
            "expected a whole number, at most 1000, found \"18446744073709551615\"",
        ),
        ("top-k:k=99999999999999999999999", 8, "expected a whole number"),
        ("top-k:k=0", 0, "expected k of at least 1 (top-k), found 0"),
        ("top-k:k=2,k=2", 10, "expected each setting once, found k again"),
        ("top-k:q=2", 6, "expected one of k, weights, found \"q\""),
        ("top-k:k=2)", 9, "expected the end, found \")\""),
        ("top-k:k=2,weights=ALL", 18, "expected one of chosen, all, renormalized, found \"ALL\""),
        ("relu:x=1", 5, "expected no settings of relu, found \"x\""),
        ("relu(dense)", 4, "expected the end, found \"(dense)\""),
        ("top-p:p=NaN", 8, "expected a number of f32, found \"NaN\""),
        ("top-p:p=1e39", 8, "expected a number of f32"),
        ("top-p:p=inf", 0, "expected a number above 0, at most 1 (top-p), found inf"),
        ("expert-choice:capacity=1e999", 23, "expected a number, found \"1e999\""),
        ("expert-choice", 0, "one of capacity, places (capacity), found neither"),
        ("expert-choice:capacity=1,places=2", 0, "one of capacity, places (capacity), found both"),
        (
            "scored:k=2,score=sigmoid, epsilon = 1",
            26,
            "expected epsilon only with divide=sum or divide=at-least, found \"epsilon = 1\"",
        ),
        ("scored:k=2,score=softmax,divide=norm,epsilon=1", 37, "only with divide=sum or divide=at-least"),
        ("scored:p=2,k=2,score=softmax,divide=sum", 7, "expected p only with divide=norm, found \"p=2\""),
        ("scored:k=2,score=sigmoid,group-score=two-best", 25, "group-score only with groups above 1"),
        ("hash:seed=1,table=[0,1]", 5, "expected seed only without table, found \"seed=1\""),
        ("hash:table=[0,1],seed=1", 17, "expected seed only without table, found \"seed=1\""),
        ("capped(relu):places=2,of=tokens", 22, "expected of only with factor, found \"of=tokens\""),
        ("capped(relu):rounding=down,places=2", 13, "expected rounding only without places"),
        ("jitter(expert-choice:places=2,rounding=down):epsilon=0", 30, "rounding only without places"),
        ("capped-expert-choice:places=2,most=1,rounding=half-even", 37, "rounding only without places"),
        ("deepseek-v3:k=2,groups=0", 0, "expected at least 1 group (expert groups), found 0"),
        ("deepseek-v2:k=2,groups=4,kept=0", 0, "expected from 1 to 4 groups kept (expert groups), found 0"),
        ("capped", 6, "expected \"(\" and another router, found the end"),
        ("capped(", 7, "expected the name of a router"),
        ("capped(top-k:k=2", 16, "expected \")\", found the end"),
        ("capped(top-k:k=2):factor=-1", 0, "a finite number above 0 (capacity factor), found -1"),
        ("capped(top-k:k=2):factor=1(", 26, "expected the end, found \"(\""),
        ("threshold:at=0.5", 13, "expected a list in square brackets, found \"0.5\""),
        ("threshold:at=[0.5,,1]", 18, "expected a number of f32, found \"\""),
        ("threshold:at=[0.5, x]", 19, "expected a number of f32, found \"x\""),
        ("threshold:at=[0.5", 13, "expected a list in square brackets, found \"[0.5\""),
        ("hash:table=[4294967296]", 12, "expected a whole number below 4294967296"),
        ("t\u{f6}p-k:k=2", 0, "found \"t\u{f6}p-k\""),
        ("top-k:k=\u{ff12}", 8, "expected a whole number"),
        ("top-k:\u{a0}k=2\u{a0}\u{1f980}", 10, "found \"2\\u{a0}\u{1f980}\""),
    ] {
        match text.parse::<RouterSpec>() {
            Ok(spec) => failures.push(format!("{text}: parsed as {spec}")),
            Err(error) if error.at() != at || !error.to_string().contains(message) => {
                failures.push(format!("{text}: {error}"));
            }
            Err(_) => {}
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn deep_nesting_is_an_error() {
    let nested = |n: usize| format!("{}relu{}", "renormalized(".repeat(n), ")".repeat(n));
    assert!(nested(15).parse::<RouterSpec>().is_ok());
    for n in [16, 100_000] {
        let error = nested(n).parse::<RouterSpec>().unwrap_err();
        assert!(error.to_string().contains("at most 16 routers in each other"), "{error}");
    }
    for open in ["(", "capped("] {
        assert!(open.repeat(100_000).parse::<RouterSpec>().is_err());
    }
    assert!("x".repeat(1 << 20).parse::<RouterSpec>().unwrap_err().to_string().len() < 1000);
}
