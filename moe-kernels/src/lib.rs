//! SIMD kernels of a mixture-of-experts layer: the same bits on every backend and with any number of threads.
//!
//! Every dot product has the one canonical order of [`moe_core::numerics`], and parallel work is split over output
//! columns, rows and experts, never over the dimension summed. So a result depends on its operands alone.
//!
//! - [`Backend`] is the instruction set, chosen once at run time.
//! - [`WeightMatrix`] is a matrix where it lies in a checkpoint, in f32, f16, bf16 or one of the [`BlockType`]s;
//!   [`WeightView`] the same in somebody else's bytes.
//! - [`Linear`] is `x · Wᵀ`, and a [`moe_core::Gate`].
//! - [`SwiGluExperts`] is Mixtral's bank of experts, a [`moe_core::Experts`]; [`SwiGlu`] the same without the weights.
//! - [`Activations`] says what products may do to their input: nothing, by default.
//! - [`vector`] has norms and softmax, [`attention`] one layer's attention over a cache.
//!
//! Work runs in the rayon pool that the caller is in, or the global one.
//!
//! A matrix in bf16, as a checkpoint stores it, multiplied where it lies:
//!
//! ```
//! use moe_kernels::{Backend, Dtype, Linear, LinearScratch, WeightMatrix, narrow_row};
//! use ndarray::{Array2, array};
//!
//! # fn main() -> Result<(), moe_kernels::Error> {
//! let (values, mut bytes) = ([1.0, 2.0, 3.0, 0.5, 0.0, -1.0], [0; 12]);
//! narrow_row(Dtype::Bf16, &values, &mut bytes);
//! let weight = WeightMatrix::new(bytes.to_vec().into(), Dtype::Bf16, 2, 3)?;
//!
//! let linear = Linear::new(weight, Backend::best());
//! let x = array![[1.0, 10.0, 100.0]];
//! let mut y = Array2::zeros((1, 2));
//! linear.forward(x.view(), &mut LinearScratch::default(), y.view_mut())?;
//! assert_eq!(y, array![[321.0, -99.5]]);
//! # Ok(())
//! # }
//! ```

mod activations;
pub mod attention;
mod backend;
mod blocks;
mod chunk;
mod dtype;
mod element;
mod error;
mod kind;
pub mod limits;
mod linear;
mod packed;
mod products;
mod schedule;
mod simd;
mod swiglu;
mod tile;
pub mod vector;
mod weight;

pub use activations::Activations;
pub use backend::Backend;
pub use blocks::BlockType;
pub use dtype::Dtype;
pub use element::{narrow_row, padded_row_bytes, widen_row};
pub use error::{Error, Result};
pub use linear::{Linear, LinearScratch};
pub use schedule::{enter, may_wait, over_rows};
pub use swiglu::{SwiGlu, SwiGluExperts, SwiGluView, SwiGluWeights};
pub use weight::{WeightFormat, WeightMatrix, WeightView};
