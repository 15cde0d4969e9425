//! Routers by name, to be shared by layers.

use std::sync::Arc;

use moe_core::Router;
use moe_router::RouterSpec;

use crate::{Error, Result};

/// The router of a spec.
pub(super) fn built(spec: &RouterSpec) -> Result<Arc<dyn Router>> {
    // No layer is at fault: a spec that was parsed has settings that its router takes.
    let router = spec.build().map_err(|source| Error::Layer { layer: 0, source })?;
    Ok(router.into())
}
