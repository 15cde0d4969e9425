#!/usr/bin/env python3
"""Writes the goldens of tests/blocks.rs: what the gguf package (MIT licence) widens block-quantised weights to.

    pip install gguf==0.19.0 numpy
    make_blocks.py --models DIR --out moe-kernels/tests/data

DIR has GGUF files; blocks of real weights are taken from them. Digests are 64-bit FNV-1a over the little-endian bits of the
values, every NaN counting as 0x7fc00000.

blocks.tsv: `type <tab> case <tab> blocks <tab> digest`, over blocks that the test makes itself as this script does; or, where
the case is FILE/TENSOR, over the next so many blocks of blocks.bin, which are the beginning of that tensor.
"""
import argparse
import glob
import os

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

TYPES = (
    "Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4 "
    "IQ3_S IQ3_XXS IQ2_S IQ2_XS IQ2_XXS IQ1_S IQ1_M"
).split()

# f16 scales: zeros, subnormals, the smallest and largest normal, one, infinities, NaNs.
ENDS = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E01, 0xFFFF]
MASK = (1 << 64) - 1


def splitmix(seed):
    state = seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def random_bytes(numbers, count):
    words = [next(numbers).to_bytes(8, "little") for _ in range(-(-count // 8))]
    return bytearray(b"".join(words)[:count])


def cases(seed, size):
    """name -> blocks, in the order in which the stream of random numbers is used up."""
    numbers = splitmix(seed)
    yield "random", [random_bytes(numbers, size) for _ in range(64)]
    for v in ENDS:
        v = v.to_bytes(2, "little")
        blocks = []
        for _ in range(4):
            block = random_bytes(numbers, size)
            block[:4] = v + v
            block[size - 4:] = v + v
            blocks.append(block)
        blocks.append(bytearray((v * size)[:size]))
        yield f"ends-{v[1]:02x}{v[0]:02x}", blocks


def digest(values):
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4").ravel().copy()
    bits[np.isnan(values).ravel()] = 0x7FC00000
    h = 0xCBF29CE484222325
    for byte in bits.tobytes():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return f"{h:016x}"


def tensors(models):
    """type -> the first, the middle and the last of its tensors."""
    found = {}
    for path in sorted(glob.glob(f"{models}/*.gguf")):
        for t in GGUFReader(path).tensors:
            found.setdefault(t.tensor_type.name, []).append((f"{os.path.basename(path)}/{t.name}", t.data))
    return {name: [f[0], f[len(f) // 2], f[-1]] for name, f in found.items()}


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--models", required=True)
    a.add_argument("--out", required=True)
    a = a.parse_args()
    np.seterr(all="ignore")
    real = tensors(a.models)
    with open(f"{a.out}/blocks.tsv", "w") as out, open(f"{a.out}/blocks.bin", "wb") as data:
        out.write("# Made by make_blocks.py with gguf 0.19.0; files by llama-cpp-python 0.3.36 from random weights.\n")
        for name in TYPES:
            ty = GGMLQuantizationType[name]
            for case, blocks in cases(int(ty), GGML_QUANT_SIZES[ty][1]):
                rows = np.frombuffer(b"".join(blocks), dtype=np.uint8).reshape(len(blocks), -1)
                out.write(f"{name.lower()}\t{case}\t{len(blocks)}\t{digest(dequantize(rows, ty))}\n")
            for case, bytes_of in real.get(name, []):
                elements, size = GGML_QUANT_SIZES[ty]
                rows = bytes_of.reshape(-1, size)[: 4096 // elements]
                data.write(rows.tobytes())
                out.write(f"{name.lower()}\t{case}\t{len(rows)}\t{digest(dequantize(rows, ty))}\n")


main()
