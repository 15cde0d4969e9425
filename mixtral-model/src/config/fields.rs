//! Typed access to the fields of a JSON object, with errors that name file and field.

use std::path::Path;

use serde_json::{Map, Value};

use crate::input::brief;
use crate::{Error, Result};

/// The fields of one JSON object of a file.
pub(super) struct Fields<'a> {
    pub(super) map: &'a Map<String, Value>,
    pub(super) path: &'a Path,
    /// What stands before a field's name in messages: empty, or `rope_parameters.`.
    pub(super) prefix: &'a str,
}

impl<'a> Fields<'a> {
    /// The field's value; `null` counts as absent.
    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// Whether the field is there and `null`.
    pub(super) fn is_null(&self, field: &str) -> bool {
        self.map.get(field).is_some_and(Value::is_null)
    }

    /// The error that the field is not what was expected.
    pub(super) fn error(&self, field: &str, expected: impl Into<String>) -> Error {
        let found = self.map.get(field).map_or_else(|| "nothing".to_owned(), brief);
        Error::Config {
            path: self.path.to_path_buf(),
            field: format!("{}{field}", self.prefix),
            expected: expected.into(),
            found,
        }
    }

    /// A non-negative integer, written as one.
    pub(super) fn size(&self, field: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok());
        size.map(Some).ok_or_else(|| self.error(field, "a non-negative integer"))
    }

    /// A non-negative integer that has no default.
    pub(super) fn required_size(&self, field: &str) -> Result<usize> {
        self.size(field)?.ok_or_else(|| self.error(field, "a positive integer"))
    }

    /// A number.
    pub(super) fn number(&self, field: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.error(field, "a number"))
    }

    /// A truth value.
    pub(super) fn flag(&self, field: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.error(field, "true or false"))
    }

    /// A string.
    pub(super) fn text(&self, field: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.error(field, "a string"))
    }

    /// An object.
    pub(super) fn object(&self, field: &str) -> Result<Option<&'a Map<String, Value>>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_object().map(Some).ok_or_else(|| self.error(field, "an object"))
    }

    /// A token id.
    pub(super) fn token(&self, field: &str) -> Result<Option<u32>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        token(value).map(Some).ok_or_else(|| self.error(field, "a token id"))
    }

    /// One token id or a list of them; `None` if the field is missing, an empty list if it is `null`.
    pub(super) fn tokens(&self, field: &str) -> Result<Option<Vec<u32>>> {
        let tokens = match self.map.get(field) {
            None => return Ok(None),
            Some(Value::Null) => Some(Vec::new()),
            Some(Value::Array(items)) => items.iter().map(token).collect(),
            Some(value) => token(value).map(|token| vec![token]),
        };
        tokens.map(Some).ok_or_else(|| self.error(field, "a token id or a list of token ids"))
    }
}

fn token(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}
