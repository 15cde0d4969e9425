//! What a generation draws, as a text that others may end.

use mixtral_model::{Stops, StreamDecoder, Tokenizer};

/// The text of what a generation draws, up to one that ends it.
pub(crate) struct Heard<'t> {
    decoder: Option<StreamDecoder<'t>>,
    stops: Stops,
    text: String,
}

impl<'t> Heard<'t> {
    /// After a prompt.
    pub(crate) fn new(tokenizer: &'t Tokenizer, prompt: &[u32], stops: &[String]) -> Self {
        let decoder = Some(tokenizer.decoder_after(prompt));
        Self { decoder, stops: Stops::new(stops), text: String::new() }
    }

    pub(crate) fn push(&mut self, id: u32) {
        if let Some(decoder) = &mut self.decoder {
            self.text += &self.stops.push(&decoder.push(id));
        }
    }

    /// The text that ended it.
    pub(crate) fn found(&self) -> Option<&str> {
        self.stops.found()
    }

    /// All of it, and the text that ended it.
    pub(crate) fn finish(mut self) -> (String, Option<String>) {
        if let Some(decoder) = self.decoder.take() {
            self.text += &self.stops.push(&decoder.finish());
        }
        self.text += &self.stops.finish();
        let stop = self.found().map(str::to_owned);
        (self.text, stop)
    }
}
