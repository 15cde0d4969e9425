//! Texts that end a generation.

/// Looks for texts in a text that comes in pieces.
///
/// The one that is complete first counts, and of two that end together the longer. However the text is cut, the result is the
/// same; what is held back is at most the beginning of one of the texts.
///
/// ```
/// use mixtral_model::Stops;
///
/// let mut stops = Stops::new(&["User:".to_owned()]);
/// assert_eq!(stops.push("Hello. Us"), "Hello. ");
/// assert_eq!(stops.push("er: Who"), "");
/// assert_eq!(stops.found(), Some("User:"));
/// ```
#[derive(Debug, Default)]
pub struct Stops {
    texts: Vec<String>,
    held: String,
    /// Bytes that came before what is held.
    given: usize,
    /// Where each piece began.
    begins: Vec<usize>,
    found: Option<usize>,
}

impl Stops {
    /// Texts to look for, none of them empty.
    pub fn new(texts: &[String]) -> Self {
        Self { texts: texts.to_vec(), ..Self::default() }
    }

    /// Takes the next piece, and gives what is certain to come before any of the texts.
    pub fn push(&mut self, piece: &str) -> String {
        if self.texts.is_empty() {
            return piece.to_owned();
        }
        if self.found.is_some() {
            return String::new();
        }
        self.begins.push(self.given + self.held.len());
        self.held.push_str(piece);
        let place = |(i, text): (usize, &String)| {
            self.held.find(text.as_str()).map(|begin| (begin + text.len(), begin, i))
        };
        let certain = match self.texts.iter().enumerate().filter_map(place).min() {
            Some((_, begin, i)) => {
                self.found = Some(i);
                begin
            }
            None => {
                self.held.len() - self.texts.iter().map(|text| begun(&self.held, text)).max().unwrap_or(0)
            }
        };
        let rest = self.held.split_off(certain);
        self.given += certain;
        std::mem::replace(&mut self.held, rest)
    }

    /// What was held back, which became none of the texts.
    pub fn finish(&mut self) -> String {
        if self.found.is_some() { String::new() } else { std::mem::take(&mut self.held) }
    }

    /// The text that came.
    pub fn found(&self) -> Option<&str> {
        self.found.map(|i| &*self.texts[i])
    }

    /// How many pieces, of so many, have a part before the text that came.
    pub fn before(&self, pieces: usize) -> usize {
        match self.found {
            Some(_) => self.begins.iter().take_while(|&&begin| begin < self.given).count(),
            None => pieces,
        }
    }
}

/// How many bytes at the end of `text` are the beginning of `stop`, and not all of it.
fn begun(text: &str, stop: &str) -> usize {
    let beginnings = stop.char_indices().map(|(at, _)| at).rev();
    beginnings.filter(|&at| at <= text.len()).find(|&at| text.ends_with(&stop[..at])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::Stops;

    /// What is given of a text that comes in pieces of so many characters, and which text ended it.
    fn until(stops: &[&str], text: &str, size: usize) -> (String, Option<String>) {
        let mut found = Stops::new(&stops.iter().map(|stop| (*stop).to_owned()).collect::<Vec<_>>());
        let characters: Vec<char> = text.chars().collect();
        let mut out = String::new();
        for piece in characters.chunks(size) {
            out += &found.push(&piece.iter().collect::<String>());
        }
        out += &found.finish();
        (out, found.found().map(str::to_owned))
    }

    #[test]
    fn the_first_to_be_complete_ends_however_the_text_is_cut() {
        for (stops, text, expected, by) in [
            (&["\n\n"][..], "one\ntwo\n\nthree", "one\ntwo", Some("\n\n")),
            (&["abcdef", "cd"], "xabcdefy", "xab", Some("cd")),
            (&["b", "ab"], "xxab", "xx", Some("ab")),
            (&["aab"], "aaaab", "aa", Some("aab")),
            (&["ééx"], "éééx!", "é", Some("ééx")),
            (&["never", "nought"], "ever nou", "ever nou", None),
            (&["x"], "x", "", Some("x")),
            (&[], "all", "all", None),
        ] {
            for size in 1..=text.len() {
                let found = until(stops, text, size);
                assert_eq!(
                    found,
                    (expected.to_owned(), by.map(str::to_owned)),
                    "{stops:?} in {text:?} by {size}"
                );
            }
        }
    }

    #[test]
    fn no_more_is_held_back_than_a_beginning() {
        let mut stops = Stops::new(&["User:".to_owned()]);
        assert_eq!(stops.push("Hello Us"), "Hello ");
        assert_eq!(stops.push("e"), "");
        assert_eq!(stops.push("d. U"), "Used. ");
        assert_eq!(stops.push("ser: Who"), "");
        assert_eq!((stops.found(), stops.before(4)), (Some("User:"), 3));
        assert_eq!(stops.push("more") + &stops.finish(), "");
    }
}
