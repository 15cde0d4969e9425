//! SIMD kernels of a mixture-of-experts layer.
mod dtype;
pub use dtype::Dtype;
