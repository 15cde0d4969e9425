//! How many matrices of a model are multiplied in which way.

use std::fmt;

use moe_kernels::{Activations, WeightFormat};

/// Matrices by what their products do to their activations. A rounded kind applies to the matrices whose type has it; the
/// others, and the gates always, stay exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Products {
    /// Products of f32 activations.
    pub exact: usize,
    /// Products of activations rounded to bfloat16.
    pub bf16: usize,
    /// Products of activations rounded to int8.
    pub int8: usize,
    /// Of all of these, matrices whose type has products with activations rounded to int8.
    pub can_be_int8: usize,
}

impl Products {
    /// Takes note of a matrix of this format.
    pub(crate) fn note(&mut self, format: WeightFormat) {
        if let WeightFormat::Blocks(block) = format {
            self.can_be_int8 += usize::from(block.has_int8());
        }
    }

    /// Counts one more matrix.
    pub(crate) fn count(&mut self, activations: Activations) {
        match activations {
            Activations::Bf16 => self.bf16 += 1,
            Activations::Int8 => self.int8 += 1,
            _ => self.exact += 1,
        }
    }
}

impl fmt::Display for Products {
    /// `28 matrices with bf16 activations, 4 exact`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounded = [(self.bf16, "bf16"), (self.int8, "int8")].into_iter().filter(|(n, _)| *n > 0);
        let mut none = true;
        for (n, name) in rounded {
            write!(f, "{n} matrices with {name} activations, ")?;
            none = false;
        }
        let matrices = if none { " matrices" } else { "" };
        write!(f, "{}{matrices} exact", self.exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_both() {
        let mut products = Products::default();
        (0..3).for_each(|_| products.count(Activations::F32));
        assert_eq!(products.to_string(), "3 matrices exact");
        products.count(Activations::Int8);
        assert_eq!(products.to_string(), "1 matrices with int8 activations, 3 exact");
    }
}
