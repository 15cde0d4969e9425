"""What every contestant is given, and what the right answer is."""

import ctypes
import json
import mmap
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contestant import Case, Layer, find_case, open_tensors

BYTES = {"f32": 4, "f16": 2, "bf16": 2}
PAGE = 4096


@dataclass(frozen=True)
class Shape:
    dim: int
    hidden: int
    experts: int
    chosen: int

    @property
    def expert_elements(self) -> int:
        return 3 * self.dim * self.hidden

    def flops(self, tokens: int) -> float:
        """Useful floating-point operations: a multiplication and an addition for each active weight."""
        return 2.0 * self.expert_elements * self.chosen * tokens


def write_weights(path: Path, shape: Shape, dtype: str) -> None:
    """A checkpoint of one layer: w1 and w3 of each expert side by side, then every w2. Rows are scaled to keep values of order 1."""
    dim, hidden, experts = shape.dim, shape.hidden, shape.experts
    order = [(e, name, (hidden, dim)) for e in range(experts) for name in ("w1", "w3")]
    order += [(e, "w2", (dim, hidden)) for e in range(experts)]
    prefix = "model.layers.0.block_sparse_moe.experts"
    entries = {f"{prefix}.{e}.{name}.weight": (dtype.upper(), matrix) for e, name, matrix in order}
    header = safetensors_header(entries)
    if path.exists() and path.stat().st_size == len(header) + BYTES[dtype] * experts * shape.expert_elements:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(6)
    unfinished = path.with_suffix(".part")
    with open(unfinished, "wb") as file:
        file.write(header)
        for _, _, (rows, columns) in order:
            scale = np.float32(2 * np.sqrt(3 / columns))
            for begin in range(0, rows, 512):
                values = random.random((min(512, rows - begin), columns), np.float32)
                file.write(narrow((values - np.float32(0.5)) * scale, dtype))
    unfinished.rename(path)


def keep_in_memory(path: Path) -> mmap.mmap:
    """Maps the file so that its pages stay where they are as long as the result lives, if the system allows it."""
    with open(path, "rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    memory = np.frombuffer(pages, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(memory.nbytes)) != 0:
        why = os.strerror(ctypes.get_errno())
        print(f"{path} may leave memory while it is used ({why}): see ulimit -l", file=sys.stderr)
    return pages


def safetensors_header(entries: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The header, padded so that the first tensor begins with a page."""
    described, end = {}, 0
    for name, (dtype, shape) in entries.items():
        begin, end = end, end + int(np.prod(shape)) * (2 if dtype in ("F16", "BF16") else 4)
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(described).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return len(text).to_bytes(8, "little") + text


def narrow(values: np.ndarray, dtype: str) -> bytes:
    """Rounds to nearest, ties to even."""
    if dtype == "bf16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    return values.astype({"f32": "<f4", "f16": "<f2"}[dtype]).tobytes()


def widen(stored: np.ndarray, dtype: str) -> np.ndarray:
    """To f64, exactly."""
    if dtype == "BF16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)


def write_inputs(path: Path, shape: Shape, tokens: list[int]) -> None:
    """Tokens and their experts. One token has a variant for each set of experts, so that none finds its weights in a cache."""
    random = np.random.default_rng(7)
    arrays: dict[str, np.ndarray] = {}
    for count in tokens:
        variants = shape.experts // shape.chosen if count == 1 else 1
        logits = random.standard_normal((variants, count, shape.experts), np.float32)
        if count == 1:
            experts = random.permutation(shape.experts)[: variants * shape.chosen].reshape(variants, 1, -1)
        else:
            experts = np.argsort(-logits, axis=2, kind="stable")[:, :, : shape.chosen]
        chosen = np.exp(np.take_along_axis(logits, experts, axis=2))
        arrays[f"{count}.x"] = random.standard_normal((count, shape.dim), np.float32)
        arrays[f"{count}.experts"] = experts.astype("<i4")
        arrays[f"{count}.weights"] = (chosen / chosen.sum(axis=2, keepdims=True)).astype("<f4")
    entries = {name: ("I32" if name.endswith("experts") else "F32", a.shape) for name, a in arrays.items()}
    with open(path, "wb") as file:
        file.write(safetensors_header(entries))
        for array in arrays.values():
            file.write(array.tobytes())


def read_cases(path: Path, tokens: list[int]) -> Iterator[tuple[int, int, Case]]:
    """Tokens, variant and case of everything there is."""
    inputs = open_tensors(path)
    for count in tokens:
        for variant in range(inputs[f"{count}.experts"].shape[0]):
            yield count, variant, find_case(inputs, count, variant)


def reference(directory: Path, tokens: list[int]) -> dict[tuple[int, int], np.ndarray]:
    """Each case's result in f64, from the weights as they are stored."""
    layer = Layer.open(directory)
    cases = list(read_cases(directory / "inputs.safetensors", tokens))
    x = np.concatenate([case.x for _, _, case in cases]).astype(np.float64)
    experts = np.concatenate([case.experts for _, _, case in cases])
    weights = np.concatenate([case.weights for _, _, case in cases]).astype(np.float64)
    stored = "<f4" if layer.down.dtype == "F32" else "<f2" if layer.down.dtype == "F16" else "<u2"
    gate_up, down = layer.gate_up.array(stored), layer.down.array(stored)

    def product(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """`rows · matrixᵀ`, a strip of the matrix at a time."""
        strips = (widen(matrix[i : i + 512], layer.down.dtype) for i in range(0, len(matrix), 512))
        return np.concatenate([rows @ strip.T for strip in strips], axis=1)

    y = np.zeros_like(x)
    for e in range(layer.experts):
        token, choice = np.nonzero(experts == e)
        if len(token) == 0:
            continue
        gate, up = np.split(product(x[token], gate_up[e]), 2, axis=1)
        hidden = gate / (1 + np.exp(-gate)) * up
        y[token] += weights[token, choice, None] * product(hidden, down[e])
    ends = np.cumsum([len(case.x) for _, _, case in cases])[:-1]
    return {(count, variant): part for (count, variant, _), part in zip(cases, np.split(y, ends))}
