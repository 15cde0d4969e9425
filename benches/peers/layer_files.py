"""What every contestant is given, and what the right answer is."""

import ctypes
import importlib.util
import json
import mmap
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contestant import BLOCKS, Case, Layer, Tensor, find_case, open_tensors, row_bytes

PAGE = 4096
# Rows of a matrix that are quantised; those after them are the same again. Prime, so that no kernel's strip of rows repeats.
PERIOD = 251


@dataclass(frozen=True)
class Shape:
    dim: int
    hidden: int
    experts: int
    chosen: int

    @property
    def expert_elements(self) -> int:
        return 3 * self.dim * self.hidden

    def expert_bytes(self, dtype: str) -> int:
        return 2 * self.hidden * row_bytes(dtype, self.dim) + self.dim * row_bytes(dtype, self.hidden)

    def flops(self, tokens: int) -> float:
        """Useful floating-point operations: a multiplication and an addition for each active weight."""
        return 2.0 * self.expert_elements * self.chosen * tokens


def write_weights(path: Path, shape: Shape, dtype: str) -> None:
    """A checkpoint of one layer: w1 and w3 of each expert side by side, then every w2. Rows are scaled to keep values of order 1.
    Weights in blocks are bytes, `[rows, bytes of a row]`, whose type the metadata has."""
    dim, hidden, experts = shape.dim, shape.hidden, shape.experts
    order = [(e, name, (hidden, dim)) for e in range(experts) for name in ("w1", "w3")]
    order += [(e, "w2", (dim, hidden)) for e in range(experts)]
    prefix = "model.layers.0.block_sparse_moe.experts"
    if dtype in BLOCKS:
        stored = [("U8", (rows, row_bytes(dtype, columns))) for _, _, (rows, columns) in order]
        metadata = {"type": dtype, "dim": str(dim), "hidden": str(hidden), "period": str(PERIOD)}
    else:
        stored, metadata = [(dtype.upper(), matrix) for _, _, matrix in order], {}
    names = [f"{prefix}.{e}.{name}.weight" for e, name, _ in order]
    header = safetensors_header(dict(zip(names, stored)), metadata)
    if path.exists() and path.stat().st_size == len(header) + experts * shape.expert_bytes(dtype):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(6)
    unfinished = path.with_suffix(".part")
    with open(unfinished, "wb") as file:
        file.write(header)
        for _, _, (rows, columns) in order:
            scale = np.float32(2 * np.sqrt(3 / columns))
            if dtype in BLOCKS:
                values = random.random((min(PERIOD, rows), columns), np.float32)
                quantised = quantise((values - np.float32(0.5)) * scale, dtype)
                for begin in range(0, rows, PERIOD):
                    file.write(quantised[: rows - begin].tobytes())
                continue
            for begin in range(0, rows, 512):
                values = random.random((min(512, rows - begin), columns), np.float32)
                file.write(narrow((values - np.float32(0.5)) * scale, dtype))
    unfinished.rename(path)


def quantise(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rows of bytes, by ggml's own quantiser."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise ImportError("llama-cpp-python, whose ggml quantises, is not installed")
    chunk = ctypes.CDLL(str(Path(spec.origin).parent / "lib/libggml-base.so")).ggml_quantize_chunk
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    chunk.argtypes, chunk.restype = [ctypes.c_int, pointer, pointer, count, count, count, pointer], ctypes.c_size_t
    values = np.ascontiguousarray(values, np.float32)
    rows, columns = values.shape
    result = np.empty((rows, row_bytes(dtype, columns)), np.uint8)
    # From the first element on, and no importance of columns.
    written = chunk(BLOCKS[dtype].ggml, values.ctypes.data, result.ctypes.data, 0, rows, columns, None)
    if written != result.nbytes:
        raise ValueError(f"ggml wrote {written} bytes of {dtype}, not {result.nbytes}")
    return result


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


def safetensors_header(
    entries: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The header, padded so that the first tensor begins with a page."""
    described: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, (dtype, shape) in entries.items():
        begin, end = end, end + row_bytes(dtype.lower(), int(np.prod(shape)))
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


def stored(tensor: Tensor) -> np.ndarray:
    """The elements as they are stored: bits of bf16, and bytes of blocks."""
    if tensor.dtype.lower() in BLOCKS:
        return tensor.bytes()
    return tensor.array({"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[tensor.dtype])


def widen(stored: np.ndarray, dtype: str) -> np.ndarray:
    """To f64, exactly; of blocks, what f32 makes of them in the `gguf` package."""
    if dtype.lower() in BLOCKS:
        import gguf

        return gguf.dequantize(stored, gguf.GGMLQuantizationType[dtype]).astype(np.float64)
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
    gate_up, down = stored(layer.gate_up), stored(layer.down)

    def product(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """`rows · matrixᵀ`, a strip of the matrix at a time. Rows of the matrix that are there again are not multiplied again."""
        different = min(layer.period or len(matrix), len(matrix))
        strips = (widen(matrix[i : min(i + 512, different)], layer.down.dtype) for i in range(0, different, 512))
        return np.concatenate([rows @ strip.T for strip in strips], axis=1)[:, np.arange(len(matrix)) % different]

    y = np.zeros_like(x)
    for e in range(layer.experts):
        token, choice = np.nonzero(experts == e)
        if len(token) == 0:
            continue
        gate, up = (product(x[token], matrix) for matrix in np.split(gate_up[e], 2))
        hidden = gate / (1 + np.exp(-gate)) * up
        y[token] += weights[token, choice, None] * product(hidden, down[e])
    ends = np.cumsum([len(case.x) for _, _, case in cases])[:-1]
    return {(count, variant): part for (count, variant, _), part in zip(cases, np.split(y, ends))}
