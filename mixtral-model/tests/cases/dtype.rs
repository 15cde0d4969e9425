//! Element types that a config names.

use mixtral_model::{Ended, GenerateOptions};

use crate::tiny::{PROMPT, continued, model};

#[test]
fn dtypes_that_differ_change_nothing() {
    let model = model("35-dtype-said-twice");
    let found = continued(&model, &PROMPT, &GenerateOptions::new(&model, 3));
    assert_eq!(found, (vec![1812, 204, 1007], Ended::MaxTokens));
}
