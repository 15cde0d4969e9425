#!/usr/bin/env python3
"""Writes src/blocks/grids/tables.rs: the grids of the IQ1 to IQ3 types, as the gguf package (MIT licence) has them.

    pip install gguf==0.19.0 numpy
    make_grids.py > moe-kernels/src/blocks/grids/tables.rs
    cargo fmt -p moe-kernels
"""
import numpy as np
from gguf import quants

GRIDS = [
    ("IQ2_XXS", "Iq2Xxs", "Eight of two bits, from the lowest on"),
    ("IQ2_XS", "Iq2Xs", "Eight of two bits, from the lowest on"),
    ("IQ2_S", "Iq2S", "Eight of two bits, from the lowest on"),
    ("IQ3_XXS", "Iq3Xxs", "Four of three bits, one in each hexadecimal digit from the lowest on"),
    ("IQ3_S", "Iq3S", "Four of three bits, one in each hexadecimal digit from the lowest on"),
    ("IQ1_S", "Iq1S` and `Iq1M", "Eight of two bits, from the lowest on"),
]

print("//! The grids of the IQ1 to IQ3 types: an entry is the levels of eight or of four elements.")
print("//!")
print("//! Numbers of ggml, by the ggml authors, MIT licence; written by `tests/data/make_grids.py`.")
for name, types, what in GRIDS:
    quant = getattr(quants, name)
    quant.init_grid()
    entries, elements = quant.grid_shape
    levels = np.searchsorted(np.array(quant.grid_map), quant.grid.reshape(entries, elements).astype(int))
    packed = (levels << (np.arange(elements) * (16 // elements))).sum(axis=1)
    print(f"\n/// `{types}`: {what}.")
    print(f"pub(super) static {name}: [u16; {entries}] = [{', '.join(f'0x{p:04x}' for p in packed)}];")
