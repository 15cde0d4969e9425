//! Lists that grow by allocation that may fail, and what they hold on to.

use ndarray::ArrayViewMut2;

/// Memory for something whose size the input decides is not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: no memory for {bytes} bytes")]
pub struct OutOfMemory {
    /// What the memory is for.
    pub what: &'static str,
    /// How much it would take.
    pub bytes: usize,
}

impl OutOfMemory {
    /// For so many values of type `T`.
    pub fn of<T>(what: &'static str, count: usize) -> Self {
        Self { what, bytes: count.saturating_mul(size_of::<T>()) }
    }
}

/// Bytes that a list holds on to.
pub fn held<T>(list: &Vec<T>) -> usize {
    list.capacity() * size_of::<T>()
}

/// Makes room in a list, which is `what`, for so many entries more.
///
/// # Errors
///
/// [`OutOfMemory`].
pub fn reserve<T>(list: &mut Vec<T>, more: usize, what: &'static str) -> Result<(), OutOfMemory> {
    list.try_reserve(more).map_err(|_| OutOfMemory::of::<T>(what, list.len().saturating_add(more)))
}

/// Puts one more entry into a list, which is `what`.
///
/// # Errors
///
/// [`OutOfMemory`]; the list is as it was.
pub fn push<T>(list: &mut Vec<T>, value: T, what: &'static str) -> Result<(), OutOfMemory> {
    reserve(list, 1, what)?;
    list.push(value);
    Ok(())
}

/// Makes a list, which is `what`, hold `len` times `value`.
///
/// # Errors
///
/// [`OutOfMemory`].
pub fn refill<T: Clone>(
    list: &mut Vec<T>,
    len: usize,
    value: T,
    what: &'static str,
) -> Result<(), OutOfMemory> {
    list.clear();
    reserve(list, len, what)?;
    list.resize(len, value);
    Ok(())
}

/// Makes a list, which is `what`, hold these values, of which there are `most` at most.
///
/// # Errors
///
/// [`OutOfMemory`].
pub fn refill_from<T>(
    list: &mut Vec<T>,
    most: usize,
    values: impl IntoIterator<Item = T>,
    what: &'static str,
) -> Result<(), OutOfMemory> {
    list.clear();
    reserve(list, most, what)?;
    list.extend(values);
    Ok(())
}

/// Makes a buffer, which is `what`, at least so long. Contents are unspecified, new ones `value`.
///
/// # Errors
///
/// [`OutOfMemory`]; the buffer is then empty.
pub fn grow<T: Clone>(
    buffer: &mut Vec<T>,
    len: usize,
    value: T,
    what: &'static str,
) -> Result<(), OutOfMemory> {
    if buffer.len() < len {
        if buffer.capacity() < len {
            // What is there need not be copied, nor lie beside the new.
            *buffer = Vec::new();
            buffer.try_reserve_exact(len).map_err(|_| OutOfMemory::of::<T>(what, len))?;
        }
        buffer.resize(len, value);
    }
    Ok(())
}

/// The first `rows * columns` floats of a buffer, which is `what` and [grows](grow) if it must. Contents are unspecified.
///
/// # Errors
///
/// [`OutOfMemory`].
pub fn matrix<'a>(
    buffer: &'a mut Vec<f32>,
    rows: usize,
    columns: usize,
    what: &'static str,
) -> Result<ArrayViewMut2<'a, f32>, OutOfMemory> {
    let len = rows.saturating_mul(columns);
    grow(buffer, len, 0.0, what)?;
    #[allow(clippy::unwrap_used, reason = "the slice has just the length of the shape")]
    Ok(ArrayViewMut2::from_shape((rows, columns), &mut buffer[..len]).unwrap())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_to_be_had_is_an_error() {
        let mut list = vec![1u64, 2, 3];
        let said = |result: Result<(), OutOfMemory>| result.unwrap_err().to_string();
        let half = isize::MAX as usize;
        let expected = format!("numbers: no memory for {} bytes", usize::MAX);
        assert_eq!(said(reserve(&mut list, half, "numbers")), expected);
        assert_eq!(list, [1, 2, 3]);
        assert_eq!(said(refill(&mut list, half, 0, "numbers")), expected);
        assert_eq!(said(refill_from(&mut list, half, 0..3, "numbers")), expected);
        refill_from(&mut list, 3, 5..8, "numbers").unwrap();
        assert_eq!(list, [5, 6, 7]);
        assert_eq!(said(grow(&mut list, half, 0, "numbers")), expected);
        assert_eq!(held(&list), 0, "what is let go before is gone");
        let mut floats = vec![];
        assert_eq!(said(matrix(&mut floats, half, half, "numbers").map(|_| ())), expected);
        assert_eq!(matrix(&mut floats, 3, 5, "numbers").unwrap().dim(), (3, 5));
        assert_eq!(matrix(&mut floats, 2, 4, "numbers").unwrap().dim(), (2, 4));
        assert_eq!(held(&floats), 60);
    }
}
