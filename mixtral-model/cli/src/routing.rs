//! Showing which experts work on which token.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard};

use anstyle::{Ansi256Color, Style};
use mixtral_model::{Choices, Config, LayerExperts, Observed, Observer, Tokenizer};
use moe_core::Routed;

use crate::failure::Result;
use crate::output::{Output, harmless};
use crate::show::{Echo, PROMPT, Plain, Show};
use crate::summary::ASIDE;

/// Colours of experts 0, 1, 2, ..., legible on black and on white.
const COLORS: [u8; 8] = [160, 208, 142, 35, 37, 33, 99, 170];

/// The style of an expert: from the ninth on, the colours come again underlined.
fn style(expert: usize) -> Style {
    let color = Ansi256Color(COLORS[expert % COLORS.len()]);
    let style = Style::new().fg_color(Some(color.into()));
    if expert < COLORS.len() { style } else { style.underline() }
}

/// The experts of all tokens read.
pub(crate) struct Routing {
    layers: Vec<Choices>,
    experts: LayerExperts,
    /// Characters that the experts of a token take in a list.
    column: usize,
}

impl Routing {
    pub(crate) fn new(config: &Config) -> Self {
        let layers = vec![Choices::new(); config.layers];
        let experts = config.experts.clone();
        let digits = experts.most().saturating_sub(1).to_string().len();
        Self { layers, experts, column: config.experts_per_token * (digits + 1) - 1 }
    }

    /// Whether every layer has routed the token at this position.
    fn knows(&self, position: usize) -> bool {
        self.layers.iter().all(|layer| position < layer.tokens())
    }
}

/// Notes what every layer routes. A pass that is stopped half-way leaves tokens that not every layer knows.
pub(crate) struct Watch<'a>(pub(crate) &'a Mutex<Routing>);

impl Observer for Watch<'_> {
    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        locked(self.0).layers[routed.layer].extend(routed.plan);
        Ok(())
    }
}

pub(crate) fn locked(routing: &Mutex<Routing>) -> MutexGuard<'_, Routing> {
    // Whoever panicked with it has at worst left a layer without some tokens.
    routing.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Tokens whose experts are not known until the model has read them, with what is shown of them.
struct Waiting<'a, T> {
    routing: &'a Mutex<Routing>,
    tokens: VecDeque<T>,
    /// Position of the first.
    position: usize,
}

impl<'a, T> Waiting<'a, T> {
    fn new(routing: &'a Mutex<Routing>) -> Self {
        Self { routing, tokens: VecDeque::new(), position: 0 }
    }

    /// The next token that is known; at the end, the next of all.
    fn next(&mut self, at_end: bool) -> Option<(usize, T)> {
        if !at_end && !locked(self.routing).knows(self.position) {
            return None;
        }
        let token = self.tokens.pop_front()?;
        self.position += 1;
        Some((self.position - 1, token))
    }
}

/// Text in the colour of each token's first expert in one layer.
pub(crate) struct RoutedText<'a> {
    plain: Plain<'a>,
    layer: usize,
    waiting: Waiting<'a, (Style, String)>,
}

impl<'a> RoutedText<'a> {
    pub(crate) fn new(plain: Plain<'a>, layer: usize, routing: &'a Mutex<Routing>) -> Self {
        Self { plain, layer, waiting: Waiting::new(routing) }
    }

    fn write(&mut self, at_end: bool) -> Result<()> {
        while let Some((position, (base, text))) = self.waiting.next(at_end) {
            let first = locked(self.waiting.routing).layers[self.layer].experts(position).first().copied();
            let style = first.map_or(base, |e| style(e as usize).effects(base.get_effects()));
            self.plain.out.styled(style, &text)?;
        }
        Ok(self.plain.out.flush()?)
    }
}

impl Show for RoutedText<'_> {
    fn prompt(&mut self, ids: &[u32]) -> Result<()> {
        for &id in ids {
            let text =
                if self.plain.echo == Echo::Apart { String::new() } else { self.plain.spelling.prompt(id) };
            let text = if self.plain.echo == Echo::All { text } else { String::new() };
            self.waiting.tokens.push_back((PROMPT, text));
        }
        self.write(false)
    }

    fn token(&mut self, id: u32) -> Result<()> {
        self.write(false)?;
        let text = self.plain.spelling.push(id);
        self.waiting.tokens.push_back((Style::new(), text));
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.write(true)?;
        self.plain.end()?;
        let mut legend = format!("\ncoloured by first expert in layer {}: ", self.layer);
        for e in 0..locked(self.waiting.routing).experts.of(self.layer) {
            let style = style(e);
            // Writing to a string cannot fail.
            let _ = write!(legend, " {style}■ {e}{style:#}");
        }
        let _ = writeln!(anstream::stderr(), "{legend}");
        Ok(())
    }
}

/// One line a token: position, id, piece, and for each layer the experts, best first, with commas between.
pub(crate) struct RoutedTokens<'a> {
    out: Output,
    tokenizer: Option<&'a Tokenizer>,
    /// Whether the prompt's tokens are listed.
    echo: bool,
    waiting: Waiting<'a, (bool, u32)>,
}

impl<'a> RoutedTokens<'a> {
    pub(crate) fn new(
        out: Output,
        tokenizer: Option<&'a Tokenizer>,
        echo: bool,
        routing: &'a Mutex<Routing>,
    ) -> Self {
        Self { out, tokenizer, echo, waiting: Waiting::new(routing) }
    }

    fn write(&mut self, at_end: bool) -> Result<()> {
        while let Some((position, (of_prompt, id))) = self.waiting.next(at_end) {
            if of_prompt && !self.echo {
                continue;
            }
            let base = if of_prompt { PROMPT } else { Style::new() };
            self.out.styled(base, &format!("{position:>5} {id:>6}"))?;
            if let Some(tokenizer) = self.tokenizer {
                let piece = harmless(tokenizer.piece(id).unwrap_or("?")).replace(['\n', '\t'], "?");
                self.out.styled(base, &format!("  {piece:<15}"))?;
            }
            let routing = locked(self.waiting.routing);
            // What is missing to the full width of a layer's column is written when another column follows.
            let mut gap = 2;
            for layer in &routing.layers {
                self.out.text(&" ".repeat(gap))?;
                let mut written = 0;
                for (rank, &e) in layer.experts(position).iter().enumerate() {
                    let comma = if rank == 0 { "" } else { "," };
                    let expert = e.to_string();
                    self.out.text(comma)?;
                    self.out.styled(style(e as usize), &expert)?;
                    written += comma.len() + expert.len();
                }
                if written == 0 {
                    self.out.text("-")?;
                    written = 1;
                }
                gap = routing.column.saturating_sub(written) + 2;
            }
            self.out.text("\n")?;
        }
        Ok(())
    }
}

impl Show for RoutedTokens<'_> {
    fn prompt(&mut self, ids: &[u32]) -> Result<()> {
        self.waiting.tokens.extend(ids.iter().map(|&id| (true, id)));
        self.write(false)
    }

    fn token(&mut self, id: u32) -> Result<()> {
        self.write(false)?;
        self.waiting.tokens.push_back((false, id));
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.write(true)
    }
}

/// Writes a table of each layer's load, in percent of its choices, to standard error.
pub(crate) fn write_shares(routing: &Routing) {
    let mut table = String::new();
    // Writing to a string cannot fail.
    let _ = write!(table, "\n{ASIDE}each expert's share of a layer's choices\nexpert{ASIDE:#}  ");
    for e in 0..routing.experts.most() {
        let _ = write!(table, "{0}{e:>5}{0:#}", style(e));
    }
    for (n, layer) in routing.layers.iter().enumerate() {
        let experts = routing.experts.of(n);
        let load = layer.load(experts);
        let total = load.iter().sum::<usize>().max(1);
        let _ = write!(table, "\n{ASIDE}layer {n:<2}{ASIDE:#}");
        for (e, &rows) in load.iter().enumerate() {
            let even = total as f64 / experts as f64;
            let style = match rows as f64 / even {
                0.0..0.5 => ASIDE,
                0.5..2.0 => style(e),
                _ => style(e).bold(),
            };
            let _ = write!(table, "{style}{:>4.0}%{style:#}", 100.0 * rows as f64 / total as f64);
        }
    }
    let _ = writeln!(anstream::stderr(), "{table}\n");
}
