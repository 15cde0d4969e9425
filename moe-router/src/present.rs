//! Which tokens count.

use std::ops::Range;

use moe_core::RouteInput;

use crate::select;

/// The tokens of a range that are neither padding nor without an expert that is not masked.
pub(crate) fn present(input: &RouteInput<'_>, range: Range<usize>) -> impl Iterator<Item = usize> {
    let input = *input;
    let open = move |t| input.logits.row(t).into_iter().any(|&l| l != select::MASKED);
    range.filter(move |&t| !input.context.is_padding(t) && open(t))
}
