//! The text of a template before it is compiled: what the engine does not know is put in its terms, and what would make its
//! compiler recurse without bound is refused.

/// The most a single tag may hold beside its strings: its operators nest, each a level of the compiler's recursion.
const MAX_TAG: usize = 8192;

/// Each `elif` nests in the one before.
const MAX_ELIFS: usize = 2048;

/// Newlines as Jinja reads them, and `{% generation %}`, which tells training what the model said, as a scope without variables.
///
/// The error is the line, from 1, with the reason.
pub(super) fn prepare(text: &str) -> Result<String, (usize, String)> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut prepared = String::with_capacity(text.len());
    let mut elifs = 0;
    let mut rest = &*text;
    while let Some(at) = find_open(rest) {
        let tag = &rest[at..];
        prepared.push_str(&rest[..at]);
        let begin = prepared.len();
        let end = if tag.starts_with("{#") {
            tag.find("#}").map_or(tag.len(), |end| end + 2)
        } else {
            tag_end(tag).ok_or_else(|| {
                (line(&prepared), format!("expected at most {MAX_TAG} characters in a tag, found more"))
            })?
        };
        let (tag, after) = tag.split_at(end);
        rest = after;
        let word = if tag.starts_with("{%") { word(tag) } else { "" };
        match word {
            "generation" => prepared.push_str(&tag.replacen(word, "with", 1)),
            "endgeneration" => prepared.push_str(&tag.replacen(word, "endwith", 1)),
            _ => prepared.push_str(tag),
        }
        match word {
            "elif" => elifs += 1,
            "raw" => {
                let end = rest.find("endraw").unwrap_or(rest.len());
                prepared.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            _ => {}
        }
        if elifs > MAX_ELIFS {
            return Err((line(&prepared[..begin]), format!("expected at most {MAX_ELIFS} elif, found more")));
        }
    }
    prepared.push_str(rest);
    Ok(prepared)
}

/// The line that follows a text, from 1.
fn line(before: &str) -> usize {
    before.matches('\n').count() + 1
}

/// Where the next tag begins.
fn find_open(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|pair| matches!(pair, b"{{" | b"{%" | b"{#"))
}

/// The first word of a `{% ... %}`.
fn word(tag: &str) -> &str {
    let begin = tag[2..].trim_start_matches(['-', '+']).trim_start();
    let end = begin.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(begin.len());
    &begin[..end]
}

/// The length of the `{{ ... }}` or `{% ... %}` that a text begins with; all of it where the tag does not end, which the compiler
/// reports. `None` if it holds too much.
fn tag_end(tag: &str) -> Option<usize> {
    let close: &[u8] = if tag.starts_with("{{") { b"}}" } else { b"%}" };
    let bytes = tag.as_bytes();
    let (mut at, mut depth, mut held) = (2, 0_usize, 0);
    while let Some(&byte) = bytes.get(at) {
        if depth == 0 && bytes[at..].starts_with(close) {
            return Some(at + 2);
        }
        held += usize::from(!byte.is_ascii_whitespace());
        if held > MAX_TAG {
            return None;
        }
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'\'' | b'"' => {
                at += 1;
                while let Some(&inner) = bytes.get(at).filter(|&&inner| inner != byte) {
                    at += if inner == b'\\' { 2 } else { 1 };
                }
            }
            _ => {}
        }
        at += 1;
    }
    Some(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_is_a_scope() {
        for (text, expected) in [
            ("a\r\nb\rc", "a\nb\nc"),
            ("{%- generation -%}x{% endgeneration %}", "{%- with -%}x{% endwith %}"),
            ("{{ 'generation' }}{# {% generation %} #}", "{{ 'generation' }}{# {% generation %} #}"),
            (
                "{% raw %}{% generation %}{% endraw %}{%generation%}",
                "{% raw %}{% generation %}{% endraw %}{%with%}",
            ),
            ("{{ {'a': {'b': '}}'}} }}{% generation %}", "{{ {'a': {'b': '}}'}} }}{% with %}"),
            ("{{ '\\'{%' }}{% generation %}", "{{ '\\'{%' }}{% with %}"),
            ("{{ 'é{{", "{{ 'é{{"),
            ("{", "{"),
        ] {
            assert_eq!(prepare(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_would_nest_without_bound() {
        let error = prepare(&format!("\n{{{{ {}1 }}}}", "-".repeat(MAX_TAG))).unwrap_err();
        assert_eq!(error, (2, "expected at most 8192 characters in a tag, found more".to_owned()));
        assert!(prepare(&format!("{{{{ '{}' }}}}", "-".repeat(MAX_TAG * 2))).is_ok());
        let error = prepare(&format!("{{% if a %}}{}", "{% elif b %}".repeat(MAX_ELIFS + 1))).unwrap_err();
        assert_eq!(error, (1, "expected at most 2048 elif, found more".to_owned()));
    }
}
