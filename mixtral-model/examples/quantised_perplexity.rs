//! What quantising the demo model (or that of a directory with its own `heldout.txt`) does to its perplexity: every type,
//! exactly and with int8 activations.
//!
//! ```sh
//! cargo run --release -p mixtral-model --example quantised_perplexity
//! ```
//!
//! Every matrix but the embedding and the gates is quantised in memory. The demo's w2 has rows of 128, too short for blocks of
//! 256: for those types it takes the type of blocks of 32 that is named.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mixtral_model::{
    Access, Checkpoint, Compute, Config, Loader, Model, PerplexityOptions, SessionOptions, Tokenizer,
    Workspace,
};
use moe_kernels::{Activations, Backend, BlockType, WeightMatrix};

fn main() -> Result<(), Box<dyn Error>> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("cli/demo");
    let demo = std::env::args_os().nth(1).map_or(demo, PathBuf::from);
    let tokenizer = Tokenizer::from_dir(&demo)?;
    let ids = tokenizer.encode_prompt(&std::fs::read_to_string(demo.join("heldout.txt"))?)?;
    let config = Config::from_dir(&demo)?;
    let checkpoint = Checkpoint::open(&demo, Access::Map)?;

    let perplexity = |block: Option<BlockType>, activations| -> Result<(f64, Model), Box<dyn Error>> {
        let compute = Compute { backend: Backend::best(), activations };
        let model = Loader::new(config.clone(), &checkpoint, compute)
            .map_weights(|_, weight| match block {
                Some(block) => Ok(quantised(&weight, block)?),
                None => Ok(weight),
            })
            .load()?;
        let mut session = model.session(SessionOptions::default())?;
        let options = PerplexityOptions::new(256);
        let go_on = |_| ControlFlow::Continue(());
        let workspace = &mut Workspace::new();
        let found =
            mixtral_model::perplexity(&model, &mut session, &ids, &options, workspace, &mut (), go_on)?;
        Ok((found.perplexity(), model))
    };

    let (reference, _) = perplexity(None, Activations::F32)?;
    println!("| weights | w2 | bits a weight | exact | int8 activations | matrices int8, exact |");
    println!("|---|---|---|---|---|---|");
    println!("| bf16 | bf16 | 16 | {reference:.4} | | |");
    for &block in BlockType::ALL.iter().filter(|block| block.has_int8()) {
        let (exact, _) = perplexity(Some(block), Activations::F32)?;
        let (int8, model) = perplexity(Some(block), Activations::Int8)?;
        let bits = 8.0 * block.bytes() as f64 / block.elements() as f64;
        let change = |found: f64| format!("{found:.4} ({:+.2} %)", (found / reference - 1.0) * 100.0);
        let products = model.products();
        println!(
            "| {block} | {} | {bits:.2} | {} | {} | {}, {} |",
            of_short_rows(block),
            change(exact),
            change(int8),
            products.int8,
            products.exact
        );
    }
    Ok(())
}

/// The type of blocks of 32 that stands in where rows are no multiple of 256.
fn of_short_rows(block: BlockType) -> BlockType {
    match block {
        BlockType::Q2K | BlockType::Q3K => BlockType::Q4_0,
        BlockType::Q4K => BlockType::Q5_0,
        BlockType::Q5K => BlockType::Q5_1,
        BlockType::Q6K => BlockType::Q8_0,
        BlockType::Iq4Xs => BlockType::Iq4Nl,
        other => other,
    }
}

fn quantised(weight: &WeightMatrix, block: BlockType) -> Result<WeightMatrix, moe_kernels::Error> {
    let (rows, columns) = (weight.rows(), weight.columns());
    let block = if columns.is_multiple_of(block.elements()) { block } else { of_short_rows(block) };
    let stride = block.row_bytes(columns).unwrap_or(0);
    let mut bytes = vec![0; rows * stride];
    let mut row = vec![0.0; columns];
    for (n, to) in bytes.chunks_exact_mut(stride.max(1)).enumerate() {
        weight.widen_row(n, &mut row);
        block.quantise_row(&row, None, to)?;
    }
    WeightMatrix::new(bytes.into(), block, rows, columns)
}
