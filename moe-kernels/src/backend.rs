//! The choice of instruction set, made once at run time.

use std::fmt;
use std::str::FromStr;

use crate::simd::{Kernel, Portable, Simd};
use crate::tile::Tiling;
use crate::{Error, Result, limits};

#[cfg(target_arch = "aarch64")]
use crate::simd::neon::Neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::{
    avx2::Avx2,
    avx512::{Avx512, Base, Bf16, Vnni},
};

/// An instruction set that this processor has. All give the same bits.
#[derive(Clone, Copy, Debug)]
pub struct Backend(Isa);

/// Makes everything that there is once for each backend, from slow to fast for one kind of processor.
macro_rules! backends {
    ($($(#[doc = $doc:literal])+ $variant:ident($isa:ty), $arch:literal, $make:ident, $name:literal, $needs:literal;)+) => {
        #[derive(Clone, Copy, Debug)]
        enum Isa {
            Portable(Portable),
            $(#[cfg(target_arch = $arch)] $variant($isa),)+
        }

        impl Backend {
            /// The names of all backends, available or not, those of one kind of processor from slow to fast.
            pub const NAMES: [&'static str; 6] = ["portable", $($name),+];

            $(
                $(#[doc = $doc])+
                pub fn $make() -> Option<Self> {
                    #[cfg(target_arch = $arch)]
                    return <$isa>::new().map(|isa| Self(Isa::$variant(isa)));
                    #[cfg(not(target_arch = $arch))]
                    None
                }
            )+

            /// Every backend of this processor, from slow to fast.
            pub fn available() -> impl Iterator<Item = Self> {
                std::iter::once(Self::portable()).chain([$(Self::$make()),+].into_iter().flatten())
            }

            /// Its name, one of [`NAMES`](Self::NAMES).
            pub fn name(self) -> &'static str {
                match self.0 {
                    Isa::Portable(_) => "portable",
                    $(#[cfg(target_arch = $arch)] Isa::$variant(_) => $name,)+
                }
            }
        }

        impl FromStr for Backend {
            type Err = Error;

            /// The backend of that name, where this processor can run it.
            fn from_str(name: &str) -> Result<Self> {
                match name {
                    "portable" => Ok(Self::portable()),
                    $($name => Self::$make().ok_or(Error::MissingFeatures { name: $name, needs: $needs }),)+
                    _ => Err(Error::UnknownBackend { known: Self::NAMES.join(", "), found: name.to_owned() }),
                }
            }
        }
    };
}

backends! {
    /// AVX2 with FMA and F16C, where the processor has them.
    Avx2(Avx2), "x86_64", avx2, "avx2", "AVX2, FMA and F16C";
    /// AVX-512 F, VL, BW and DQ, where the processor has them.
    Avx512(Avx512<Base>), "x86_64", avx512, "avx512", "AVX-512 F, VL, BW and DQ";
    /// The same with VNNI, where the processor has that too: for products with int8 activations.
    Avx512Vnni(Avx512<Vnni>), "x86_64", avx512_vnni, "avx512-vnni", "AVX-512 F, VL, BW, DQ and VNNI";
    /// The same with BF16, where the processor has that too: for products with bfloat16 activations.
    Avx512Bf16(Avx512<Bf16>), "x86_64", avx512_bf16, "avx512-bf16", "AVX-512 F, VL, BW, DQ, VNNI and BF16";
    /// NEON, where the processor has it and memory is little-endian.
    Neon(Neon), "aarch64", neon, "neon", "NEON";
}

impl Backend {
    /// Safe code without vector instructions: the definition of every result, far from fast.
    pub fn portable() -> Self {
        Self(Isa::Portable(Portable))
    }

    /// The fastest backend of this processor.
    pub fn best() -> Self {
        Self::available().last().unwrap_or_else(Self::portable)
    }

    /// Runs a kernel on this instruction set. Kernels are not compiled anew for what they have no use for.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Isa::Portable(isa) => kernel.run(isa),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Avx2` exists only where its features were detected (`Avx2::new`).
            Isa::Avx2(isa) => unsafe { isa.run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Avx512` exists only where its features were detected (`Avx512::new`).
            Isa::Avx512(isa) => unsafe { isa.run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above; the base has fewer features.
            Isa::Avx512Vnni(isa) => unsafe { isa.base().run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512Bf16(isa) => unsafe { isa.base().run(kernel) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: a `Neon` exists only where NEON was detected (`Neon::new`).
            Isa::Neon(isa) => unsafe { isa.run(kernel) },
        }
    }

    /// Runs a kernel that multiplies pairs of bfloat16.
    #[inline]
    pub(crate) fn run_pairs<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Avx512` exists only where its features were detected (`Avx512::new`).
            Isa::Avx512Bf16(isa) => unsafe { isa.run(kernel) },
            _ => self.run(kernel),
        }
    }

    /// Runs a kernel that multiplies bytes.
    #[inline]
    pub(crate) fn run_bytes<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Avx512` exists only where its features were detected (`Avx512::new`).
            Isa::Avx512Vnni(isa) => unsafe { isa.run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above; this level has fewer features.
            Isa::Avx512Bf16(isa) => unsafe { isa.vnni().run(kernel) },
            _ => self.run(kernel),
        }
    }

    /// Runs plain code, which is only to be compiled for vectors of some width: by AVX2, where the processor has it, since
    /// compiling it once more for every instruction set takes longer than it gains.
    pub(crate) fn run_plain_code<K: Kernel>(kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        if let Some(isa) = Avx2::new() {
            // SAFETY: an `Avx2` exists only where its features were detected (`Avx2::new`).
            return unsafe { isa.run(kernel) };
        }
        kernel.run(Portable)
    }

    /// Halves that sixteen lanes have ([`Simd::HALVES`]).
    pub(crate) fn halves(self) -> usize {
        self.run(Registers).halves
    }

    /// How products of many rows are cut on this processor, in words for a report: rows of x by rows of weights of a tile that
    /// registers hold the sums of, and where weights are widened. It changes no bit.
    pub fn tiles(self) -> &'static str {
        self.tiling().words()
    }

    /// How exact products are cut into tiles.
    pub(crate) fn tiling(self) -> Tiling {
        match self.run(Registers).many {
            true if limits::two_wide_units() => Tiling::Wide,
            true => Tiling::Square,
            false => Tiling::Narrow,
        }
    }

    /// Whether it multiplies pairs of bfloat16.
    pub(crate) fn has_pairs(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self.0, Isa::Avx512Bf16(_));
        #[cfg(not(target_arch = "x86_64"))]
        false
    }
}

/// What a backend's registers are like.
struct Registers;

struct RegisterFacts {
    halves: usize,
    many: bool,
}

impl Kernel for Registers {
    type Output = RegisterFacts;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> RegisterFacts {
        RegisterFacts { halves: S::HALVES, many: S::MANY_REGISTERS }
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
