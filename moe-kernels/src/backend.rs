//! The choice of instruction set, made once at run time.

use std::fmt;
use std::str::FromStr;

use crate::simd::{Kernel, Portable, Simd};
use crate::{Error, Result};

#[cfg(target_arch = "aarch64")]
use crate::simd::neon::Neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx2::Avx2, avx512::Avx512};

/// An instruction set that this processor has. All give the same bits.
#[derive(Clone, Copy, Debug)]
pub struct Backend(Isa);

#[derive(Clone, Copy, Debug)]
enum Isa {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<false>),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512<true>),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

impl Backend {
    /// The names of all backends, available or not, those of one kind of processor from slow to fast.
    pub const NAMES: [&'static str; 5] = ["portable", "avx2", "avx512", "avx512-bf16", "neon"];

    /// Safe code without vector instructions: the definition of every result, far from fast.
    pub fn portable() -> Self {
        Self(Isa::Portable(Portable))
    }

    /// AVX2 with FMA and F16C, where the processor has them.
    pub fn avx2() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return Avx2::new().map(|isa| Self(Isa::Avx2(isa)));
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// AVX-512 F, VL, BW and DQ, where the processor has them.
    pub fn avx512() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return Avx512::new().map(|isa| Self(Isa::Avx512(isa)));
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// The same with BF16, where the processor has that too: for products with bfloat16 activations.
    pub fn avx512_bf16() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return Avx512::new()?.with_bf16().map(|isa| Self(Isa::Avx512Bf16(isa)));
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// NEON, where the processor has it and memory is little-endian.
    pub fn neon() -> Option<Self> {
        #[cfg(target_arch = "aarch64")]
        return Neon::new().map(|isa| Self(Isa::Neon(isa)));
        #[cfg(not(target_arch = "aarch64"))]
        None
    }

    /// Every backend of this processor, from slow to fast.
    pub fn available() -> impl Iterator<Item = Self> {
        let faster = [Self::avx2(), Self::avx512(), Self::avx512_bf16(), Self::neon()];
        std::iter::once(Self::portable()).chain(faster.into_iter().flatten())
    }

    /// The fastest backend of this processor.
    pub fn best() -> Self {
        Self::available().last().unwrap_or_else(Self::portable)
    }

    /// Its name, one of [`NAMES`](Self::NAMES).
    pub fn name(self) -> &'static str {
        match self.0 {
            Isa::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(_) => "avx512-bf16",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => "neon",
        }
    }

    /// Runs a kernel on this instruction set.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Isa::Portable(isa) => kernel.run(isa),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Avx2` exists only where AVX2, FMA and F16C were detected (`Avx2::new`).
            Isa::Avx2(isa) => unsafe { isa.run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Avx512` exists only where AVX-512 F, VL, BW and DQ were detected (`Avx512::new`).
            Isa::Avx512(isa) => unsafe { isa.run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512Bf16(isa) => unsafe { isa.without_bf16().run(kernel) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: a `Neon` exists only where NEON was detected (`Neon::new`).
            Isa::Neon(isa) => unsafe { isa.run(kernel) },
        }
    }

    /// Parts that sixteen lanes have.
    pub(crate) fn parts(self) -> usize {
        self.run(Parts)
    }

    /// Whether it multiplies pairs of bfloat16.
    pub(crate) fn has_pairs(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self.0, Isa::Avx512Bf16(_));
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Runs a kernel that multiplies pairs of bfloat16, for which most kernels need not be compiled.
    #[inline]
    pub(crate) fn run_pairs<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this type exists only where AVX-512 F, VL, BW, DQ and BF16 were detected (`Avx512::with_bf16`).
            Isa::Avx512Bf16(isa) => unsafe { isa.run(kernel) },
            _ => self.run(kernel),
        }
    }
}

struct Parts;

impl Kernel for Parts {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::PARTS
    }
}

impl Default for Backend {
    fn default() -> Self {
        Self::best()
    }
}

impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Backend {}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Backend {
    type Err = Error;

    /// The backend of that name, where this processor can run it.
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "portable" => Ok(Self::portable()),
            "avx2" => {
                Self::avx2().ok_or(Error::MissingFeatures { name: "avx2", needs: "AVX2, FMA and F16C" })
            }
            "avx512" => {
                let needs = "AVX-512 F, VL, BW and DQ";
                Self::avx512().ok_or(Error::MissingFeatures { name: "avx512", needs })
            }
            "avx512-bf16" => {
                let needs = "AVX-512 F, VL, BW, DQ and BF16";
                Self::avx512_bf16().ok_or(Error::MissingFeatures { name: "avx512-bf16", needs })
            }
            "neon" => Self::neon().ok_or(Error::MissingFeatures { name: "neon", needs: "NEON" }),
            _ => Err(Error::UnknownBackend { known: Self::NAMES.join(", "), found: name.to_owned() }),
        }
    }
}
