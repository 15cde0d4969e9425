//! `mixtral completions` and `mixtral man`.

use crate::{output, run};

const COMMANDS: [&str; 13] = [
    "generate",
    "chat",
    "inspect",
    "tokenize",
    "logits",
    "perplexity",
    "route",
    "bench",
    "serve",
    "quantize",
    "convert",
    "completions",
    "man",
];

#[test]
fn shells_complete_the_commands_and_their_options() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = output("completions {}", &[shell]);
        for name in COMMANDS.iter().chain(&["stop", "prompt-file"]) {
            assert!(script.contains(name), "{shell}: {name}");
        }
    }
    let said = run("completions tcsh", &[]);
    assert_eq!((&*said.out, said.status), ("", Some(2)));
    assert!(said.err.contains("possible values: bash"), "{}", said.err);
}

#[test]
fn manuals_name_the_commands_and_their_options() {
    let page = output("man", &[]);
    assert!(page.contains(".TH mixtral 1"), "{page}");
    for name in COMMANDS {
        assert!(page.contains(&format!("mixtral\\-{name}(1)")), "{name}: {page}");
        let page = output("man {}", &[name]);
        assert!(page.contains(&format!(".TH mixtral-{name} 1")), "{name}: {page}");
    }
    assert!(output("man chat", &[]).contains("\\-\\-stop"));
    let said = run("man nothing", &[]);
    assert_eq!(said.status, Some(1));
    assert_eq!(said.err, "error: command: expected one of mixtral's, found \"nothing\"\n");
}
