#!/usr/bin/env python3
"""Writes the goldens of tests/quantise.rs: weights of three distributions, and the errors that ggml (MIT licence) makes of them.

    pip install numpy gguf==0.19.0 llama-cpp-python==0.3.36
    make_errors.py --out moe-kernels/tests/data [--library libggml-base.so]

weights.bin: for each distribution 32 rows of 1024 weights, little-endian f16.
errors.tsv: `type <tab> distribution <tab> plain or weighted <tab> error`. The error is sum(c (x - y)^2) / sum(c x^2) in f64 over
all weights x, which became y; c is 1, or for weighted what `importance` below says of a column, which ggml is given as well.
"""
import argparse
import ctypes
import glob
import os

import numpy as np
from gguf import GGMLQuantizationType, GGML_QUANT_SIZES
from gguf.quants import dequantize

TYPES = "Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4".split()
ROWS, COLUMNS = 32, 1024


def distributions():
    r = np.random.default_rng(1)
    shape = (ROWS, COLUMNS)
    yield "normal", r.standard_normal(shape)
    yield "heavy", 1.3 * r.standard_normal(shape) * np.exp(0.4 * r.standard_normal(shape))
    yield "student", r.standard_t(3, shape)


def importance():
    """Of column i (1 + 37 i mod 61)^2 / 64."""
    return ((1 + np.arange(COLUMNS) * 37 % 61) ** 2 / 64).astype(np.float32)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--out", required=True)
    a.add_argument("--library")
    a = a.parse_args()
    if a.library is None:
        import llama_cpp

        a.library = glob.glob(f"{os.path.dirname(llama_cpp.__file__)}/lib/*ggml-base.*")[0]
    quantise = ctypes.CDLL(a.library).ggml_quantize_chunk
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    quantise.argtypes, quantise.restype = [ctypes.c_int, pointer, pointer, i64, i64, i64, pointer], ctypes.c_size_t
    with open(f"{a.out}/weights.bin", "wb") as data, open(f"{a.out}/errors.tsv", "w") as out:
        out.write("# Made by make_errors.py with ggml of llama-cpp-python 0.3.36, numpy 2 and gguf 0.19.0.\n")
        for distribution, x in distributions():
            data.write(x.astype("<f2").tobytes())
            x = np.ascontiguousarray(x.astype(np.float16).astype(np.float32))
            for name in TYPES:
                ty = GGMLQuantizationType[name]
                elements, size = GGML_QUANT_SIZES[ty]
                for kind in ("plain", "weighted"):
                    c = importance() if kind == "weighted" else None
                    y = np.zeros(ROWS * COLUMNS // elements * size, dtype=np.uint8)
                    n = quantise(int(ty), x.ctypes.data, y.ctypes.data, 0, ROWS, COLUMNS, None if c is None else c.ctypes.data)
                    assert n == len(y)
                    y = dequantize(y.reshape(ROWS, -1), ty).astype(np.float64)
                    c = np.ones(COLUMNS) if c is None else c.astype(np.float64)
                    error = (c * (x - y) ** 2).sum() / (c * x.astype(np.float64) ** 2).sum()
                    out.write(f"{name.lower()}\t{distribution}\t{kind}\t{error:.6e}\n")


main()
