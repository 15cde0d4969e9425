//! `mixtral lab report`.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

use mixtral_model::lab::{CompareOptions, ExpertBytes, MappedToken, RoutingMap, compare, picture};
use mixtral_model::{Access, Error, LayerRouters, Model, PerplexityOptions, Tokenizer};

use super::page::{Page, Picture};
use super::table::Table;
use super::{Subject, WINDOW};
use crate::args::Report;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::load;
use crate::progress::Progress;
use crate::summary::aside;

pub(super) fn run(args: &Report, interrupt: &Interrupt) -> Result<()> {
    let Subject { source, model, ids } = Subject::new(&args.running, args.text.as_deref(), args.window)?;
    let tokenizer = load::tokenizer(&source, &model)?;
    let checkpoint = source.checkpoint(Access::Map)?;
    let bytes = ExpertBytes::of(&checkpoint, model.config())?;
    let specs = numbers_of_experts(&model).into_iter().map(|k| format!("top-k:k={k}"));
    let specs = specs.chain(args.routers.iter().cloned());
    let routers = specs.map(|spec| Ok((spec.clone(), LayerRouters::parse(&model, &spec)?)));
    let routers = routers.collect::<Result<Vec<_>>>()?;
    let window = args.window.map_or(WINDOW.min(args.running.context(&model)), NonZeroUsize::get);
    let windows = PerplexityOptions::new(window).with_chunk(window);
    let session = args.running.session_options().with_seed(args.seed);
    let options = CompareOptions::new(windows).with_session(session).with_map(args.shown);
    // What cannot be written is not computed.
    fs::create_dir_all(&args.out).map_err(failed(&args.out))?;

    let read = windows.tokens_read(ids.len());
    let mut observer = (interrupt.clone(), Progress::new(&model, read * (1 + routers.len())));
    let go_on = |_, _| interrupt.go_on();
    let found =
        interrupt.during(|| compare(&model, &ids, &options, &routers, &bytes, &mut observer, go_on))?;
    drop(observer);
    let mut pictures = Vec::new();
    let mut draw = |file, caption, svg| pictures.push(Picture { file, caption, svg });
    draw("perplexity.svg", PERPLEXITY, picture::perplexity_by_experts(&found));
    if let Some(map) = &found.map {
        draw("load.svg", LOAD, picture::load(map));
        let texts = texts(map, &tokenizer)?;
        draw("text.svg", TEXT, picture::routed_text(map, &texts));
        draw("transitions.svg", TRANSITIONS, picture::transitions(map));
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
        text: args.text.as_ref().map_or("standard input".to_owned(), |text| text.display().to_string()),
        command: std::env::args().skip(1).collect(),
        table: &Table::new(&found, ids.len(), &windows),
        pictures: &pictures,
    };
    for Picture { file, svg, .. } in &pictures {
        write(&args.out.join(file), svg)?;
    }
    let index = args.out.join("index.html");
    write(&index, &page.html()?)?;
    aside(&format!("{}, and {} pictures", index.display(), pictures.len()));
    if found.stopped {
        aside(&format!("interrupted: of {} windows", found.windows));
        return Err(Failure::Interrupted);
    }
    Ok(())
}

const PERPLEXITY: &str = "What fewer and more experts a token do to the model's predictions, and what other routers do with as many. Intervals that \
    overlap do not show that two routers are alike: the table has the difference of each to the model's own on the same tokens.";
const LOAD: &str = "Even routing would give every expert of a layer the same share. Shares of a layer sum to the experts a token.";
const TEXT: &str = "The beginning of the text. Numbers are the token's experts, best first; colours are those of the best one.";
const TRANSITIONS: &str =
    "Rows sum to 100 %. A row with one dark cell is an expert whose tokens stay together in the next layer.";
const TOGETHER: &str = "The diagonal is left out: an expert is always with itself. A dark cell is a pair that often shares a token.";
const AGREEMENT: &str = "Routing one layer otherwise changes what the next one's router sees. Where a line falls, tokens have gone elsewhere.";

/// Experts a token that are tried: few of them one by one, many by halves of octaves, but for what the model has itself.
fn numbers_of_experts(model: &Model) -> Vec<usize> {
    let config = model.config();
    let least = (0..config.layers).map(|n| config.experts.of(n)).min().unwrap_or(0);
    let steps = std::iter::successors(Some(1), |k: &usize| k.checked_mul(2));
    let steps = steps.flat_map(|k| [k, k + k / 2]).take_while(|&k| k <= least);
    let mut all: Vec<_> = steps.filter(|&k| k != config.experts_per_token).collect();
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

fn write(path: &Path, text: &str) -> Result<()> {
    Ok(fs::write(path, text).map_err(failed(path))?)
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    |source| Error::Io { path: path.to_path_buf(), source }
}
