//! `mixtral lab report`.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use mixtral_model::lab::{CompareOptions, ExpertBytes, MappedToken, RoutingMap, picture};
use mixtral_model::{Error, Model, PerplexityOptions, Tokenizer};

use super::page::{Page, Picture};
use super::table::Table;
use super::{Subject, WINDOW};
use crate::args::Report;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::summary::{aside, write_memory};

pub(super) fn run(args: &Report, interrupt: &Interrupt) -> Result<()> {
    let subject = Subject::new(&args.running, args.text.as_deref(), args.window)?;
    let Subject { source, model, tokenizer, ids } = &subject;
    let checkpoint = args.running.look_at(source)?;
    let bytes = ExpertBytes::of(&checkpoint, model.config())?;
    let specs = numbers_of_experts(model).into_iter().map(|k| format!("top-k:k={k}"));
    let mut specs: Vec<_> = specs.collect();
    // Twice the same is once.
    args.routers.iter().for_each(|spec| {
        if !specs.contains(spec) {
            specs.push(spec.clone());
        }
    });
    let routers = subject.routers(&specs)?;
    let window = args.window.map_or(WINDOW.min(args.running.context(model)), NonZeroUsize::get);
    let windows = PerplexityOptions::new(window).with_chunk(window);
    let session = args.running.session_options().with_seed(args.seed);
    let options = CompareOptions::new(windows).with_session(session).with_map(args.shown);
    // What cannot be written is not computed.
    if args.out.exists() && !args.out.is_dir() {
        return Err(Failure::not_as_expected(
            args.out.display(),
            "expected a directory, found something else",
        ));
    }
    fs::create_dir_all(&args.out).map_err(failed(&args.out))?;

    let found = subject.compare(&routers, &options, &bytes, interrupt)?;
    if found.windows == 0 {
        aside("interrupted before the end of the first window: nothing is written");
        return Err(Failure::Interrupted);
    }
    let mut pictures = Vec::new();
    let mut draw = |file, caption, svg| pictures.push(Picture { file, caption, svg });
    draw("perplexity.svg", PERPLEXITY, picture::perplexity_by_experts(&found));
    if let Some(map) = &found.map {
        draw("load.svg", LOAD, picture::load(map));
        let texts = texts(map, tokenizer)?;
        draw("text.svg", TEXT, picture::routed_text(map, &texts));
        // One layer has no next one.
        if !map.transitions.is_empty() {
            draw("transitions.svg", TRANSITIONS, picture::transitions(map));
        }
        draw("together.svg", TOGETHER, picture::co_activation(map));
    }
    draw("agreement.svg", AGREEMENT, picture::agreement_by_depth(&found));
    let page = Page {
        model: args
            .running
            .model
            .model
            .as_ref()
            .map_or("built-in demo".to_owned(), |m| m.display().to_string()),
        digest: checkpoint.digest()?.to_string(),
        text: match &args.text {
            Some(text) if text.as_os_str() != "-" => text.display().to_string(),
            _ => "standard input".to_owned(),
        },
        command: std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect(),
        table: &Table::new(&found, ids.len(), &windows),
        pictures: &pictures,
    };
    let index = args.out.join("index.html");
    let html = page.html()?;
    let files = pictures.iter().map(|picture| (args.out.join(picture.file), &picture.svg));
    write_all(&files.chain([(index.clone(), &html)]).collect::<Vec<_>>())?;
    aside(&format!("{}, and {} pictures", index.display(), pictures.len()));
    write_memory(model);
    if found.stopped {
        let all = windows.windows(ids.len()).count();
        aside(&format!("interrupted after {} of {all} windows", found.windows));
        return Err(Failure::Interrupted);
    }
    Ok(())
}

const PERPLEXITY: &str = "What fewer and more experts a token do to the model's predictions, and what other routers do with as many. Intervals that \
    overlap do not show that two routers are alike: the table has the difference of each to the model's own on the same tokens.";
const LOAD: &str = "Even routing would give every expert of a layer the same share. Shares of a layer sum to the experts a token.";
const TEXT: &str = "The beginning of the text, in the colours of the best experts; with up to eight layers, the numbers of all of a token's experts stand there, \
    best first. The last token of a window is predicted and not read, and so has none.";
const TRANSITIONS: &str =
    "Rows sum to 100 %. A row with one dark cell is an expert whose tokens stay together in the next layer.";
const TOGETHER: &str = "The diagonal is left out: an expert is always with itself. A dark cell is a pair that often shares a token.";
const AGREEMENT: &str = "Routing one layer otherwise changes what the next one's router sees. Where a line falls, tokens have gone elsewhere.";

/// Experts a token that are tried: 1, 2, 3, 4, 6, 8, 12, 16 and so on, and all, but for what the model has itself.
fn numbers_of_experts(model: &Model) -> Vec<usize> {
    let config = model.config();
    let least = (0..config.layers).map(|n| config.experts.of(n)).min().unwrap_or(0);
    let steps = std::iter::successors(Some(1), |k: &usize| k.checked_mul(2));
    let steps = steps.flat_map(|k| [k, k + k / 2]).take_while(|&k| k <= least);
    let mut all: Vec<_> = steps.chain([least]).filter(|&k| k > 0 && k != config.experts_per_token).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The texts of the tokens of a map, each sequence by itself; where a token has none, its name.
fn texts(map: &RoutingMap, tokenizer: &Tokenizer) -> Result<Vec<String>> {
    let (mut texts, mut sequence) = (Vec::new(), None);
    let mut decoder = tokenizer.decoder();
    for MappedToken { id, place, .. } in &map.tokens {
        if sequence.replace(place[0]) != Some(place[0]) {
            decoder = tokenizer.decoder();
        }
        let id = id.unwrap_or_default();
        let text = decoder.push(id);
        texts.push(if text.is_empty() { tokenizer.piece(id).unwrap_or("?").to_owned() } else { text });
    }
    Ok(texts)
}

/// Writes files that take the place of older ones when all of them are complete.
fn write_all(files: &[(PathBuf, &String)]) -> Result<()> {
    let unfinished = |path: &Path| path.with_extension("unfinished");
    let written = files.iter().try_for_each(|(path, text)| {
        if path.is_dir() {
            return Err(Failure::not_as_expected(
                path.display(),
                "expected a file or none, found a directory",
            ));
        }
        let part = unfinished(path);
        Ok(fs::write(&part, text).map_err(failed(&part))?)
    });
    if written.is_err() {
        files.iter().for_each(|(path, _)| drop(fs::remove_file(unfinished(path))));
        return written;
    }
    files.iter().try_for_each(|(path, _)| Ok(fs::rename(unfinished(path), path).map_err(failed(path))?))
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    |source| Error::Io { path: path.to_path_buf(), source }
}
