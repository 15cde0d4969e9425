//! A trace, layer by layer of its passes.

use std::path::Path;

use moe_core::memory;
use moe_router::trace::TokenRoute;

use super::super::{of_file, reader};
use crate::failure::Result;

/// What a pass did in one layer.
#[derive(Default)]
pub(super) struct LayerPass {
    pub(super) step: u32,
    pub(super) layer: u16,
    pub(super) tokens: Vec<Token>,
    /// Experts that worked on the tokens, token by token, best first.
    kept: Vec<u32>,
    /// Experts that were asked for, token by token, best first.
    asked: Vec<u32>,
}

/// A token of a pass.
#[derive(Clone, Copy)]
pub(super) struct Token {
    pub(super) sequence: u32,
    pub(super) position: u32,
    /// Where its experts end in either list.
    ends: [usize; 2],
}

impl LayerPass {
    /// Reads a trace, and hands over every pass of every layer.
    pub(super) fn each(path: &Path, mut take: impl FnMut(&Self) -> Result<()>) -> Result<()> {
        let mut reader = reader(path)?;
        let (mut pass, mut route) = (Self::default(), TokenRoute::default());
        while reader.next(&mut route).map_err(of_file(path))? {
            if (pass.step, pass.layer) != (route.step, route.layer) {
                pass.hand_over(&mut take)?;
                (pass.step, pass.layer) = (route.step, route.layer);
            }
            pass.push(&route)?;
        }
        pass.hand_over(&mut take)
    }

    fn hand_over(&mut self, take: &mut impl FnMut(&Self) -> Result<()>) -> Result<()> {
        if !self.tokens.is_empty() {
            take(self)?;
        }
        self.tokens.clear();
        self.kept.clear();
        self.asked.clear();
        Ok(())
    }

    fn push(&mut self, route: &TokenRoute) -> Result<()> {
        let TokenRoute { kept, refused, sequence, position, .. } = route;
        memory::reserve(&mut self.kept, kept.len(), "experts of a pass")?;
        memory::reserve(&mut self.asked, kept.len() + refused.len(), "experts of a pass")?;
        memory::reserve(&mut self.tokens, 1, "tokens of a pass")?;
        self.kept.extend(kept.iter().map(|pair| u32::from(pair.expert)));
        self.asked.extend(route.by_rank().map(|(pair, _)| u32::from(pair.requested)));
        let ends = [self.kept.len(), self.asked.len()];
        self.tokens.push(Token { sequence: *sequence, position: *position, ends });
        Ok(())
    }

    /// All experts that worked, as often as they did.
    pub(super) fn kept(&self) -> &[u32] {
        &self.kept
    }

    /// Each token with the experts that worked on it, best first.
    pub(super) fn kept_by_token(&self) -> impl Iterator<Item = (Token, &[u32])> {
        self.by_token(&self.kept, 0)
    }

    /// Each token with the experts that it asked for, best first.
    pub(super) fn asked_by_token(&self) -> impl Iterator<Item = (Token, &[u32])> {
        self.by_token(&self.asked, 1)
    }

    fn by_token<'a>(&'a self, list: &'a [u32], which: usize) -> impl Iterator<Item = (Token, &'a [u32])> {
        let mut begin = 0;
        self.tokens.iter().map(move |&token| {
            let end = token.ends[which];
            (token, &list[std::mem::replace(&mut begin, end)..end])
        })
    }
}
