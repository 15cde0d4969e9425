"""What contestants in Python share: the files they read and the lines they answer (see src/lib.rs)."""

import json
import mmap
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np


class Block(NamedTuple):
    """A type of weights in blocks."""

    ggml: int
    """Its number in ggml."""
    elements: int
    bytes: int


BLOCKS = {
    "q4_0": Block(2, 32, 18),
    "q4_1": Block(3, 32, 20),
    "q5_0": Block(6, 32, 22),
    "q5_1": Block(7, 32, 24),
    "q8_0": Block(8, 32, 34),
    "q2_k": Block(10, 256, 84),
    "q3_k": Block(11, 256, 110),
    "q4_k": Block(12, 256, 144),
    "q5_k": Block(13, 256, 176),
    "q6_k": Block(14, 256, 210),
    "iq4_nl": Block(20, 32, 18),
    "iq4_xs": Block(23, 256, 136),
    "mxfp4": Block(39, 32, 17),
}


def row_bytes(dtype: str, columns: int) -> int:
    """Bytes of a row of so many elements of a type in lower case, in blocks or not."""
    if dtype in BLOCKS:
        whole, rest = divmod(columns, BLOCKS[dtype].elements)
        if rest:
            raise ValueError(f"{columns} columns are no whole number of {dtype} blocks")
        return whole * BLOCKS[dtype].bytes
    return columns * {"f32": 4, "i32": 4, "f16": 2, "bf16": 2, "u8": 1}[dtype]


@dataclass
class Tensor:
    """A tensor of a mapped safetensors file: where its bytes begin, not a copy. Its type may be one of `BLOCKS`, in upper case."""

    map: mmap.mmap
    begin: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next."""
        return row_bytes(self.dtype.lower(), self.shape[-1])

    def bytes(self) -> np.ndarray:
        """What is stored, the last dimension being the bytes of a row."""
        shape = (*self.shape[:-1], self.row_bytes)
        return np.frombuffer(self.map, np.uint8, int(np.prod(shape)), self.begin).reshape(shape)

    def array(self, dtype: str) -> np.ndarray:
        return np.frombuffer(self.map, dtype, int(np.prod(self.shape)), self.begin).reshape(self.shape)


def open_tensors(path: Path, access: str = "map") -> dict[str, Tensor]:
    """The tensors of a file that is mapped, or read into memory of its own (`read`)."""
    with open(path, "rb") as file:
        if access == "read":
            map = mmap.mmap(-1, path.stat().st_size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            # In large pages where the system gives them, as ours has them.
            map.madvise(mmap.MADV_HUGEPAGE)
            file.readinto(map)
        else:
            # Copy-on-write, for libraries that insist on memory they may write to.
            map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    length, header = read_header(map)
    header.pop("__metadata__", None)
    return {
        name: Tensor(map, 8 + length + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
        for name, entry in header.items()
    }


def read_header(map: mmap.mmap) -> tuple[int, dict[str, Any]]:
    """The length of a safetensors file's header, and what it says."""
    length = int.from_bytes(map[:8], "little")
    return length, json.loads(map[8 : 8 + length])


@dataclass
class Layer:
    """The experts' weights. The file has w1 and w3 of each expert side by side, then every w2, so that both are one tensor."""

    gate_up: Tensor
    """`[E, 2 H, D]`: w1 above w3."""
    down: Tensor
    """`[E, D, H]`."""
    period: int | None = None
    """Rows after which those of each matrix come round again, if they do."""

    @property
    def experts(self) -> int:
        return self.gate_up.shape[0]

    @property
    def dim(self) -> int:
        return self.gate_up.shape[2]

    @property
    def hidden(self) -> int:
        return self.down.shape[2]

    @classmethod
    def open(cls, directory: Path, access: str = "map") -> "Layer":
        tensors = open_tensors(directory / "model.safetensors", access)
        experts = len(tensors) // 3
        w1, w2 = (tensors[f"model.layers.0.block_sparse_moe.experts.0.{name}.weight"] for name in ("w1", "w2"))
        _, header = read_header(w1.map)
        metadata = header.get("__metadata__", {})
        # Blocks are stored as bytes, so that their type is beside the tensors; rows are as many as elements of a column.
        dtype = metadata.get("type", w1.dtype).upper()
        hidden, dim = w1.shape[0], w2.shape[0]
        return cls(
            Tensor(w1.map, w1.begin, dtype, (experts, 2 * hidden, dim)),
            Tensor(w2.map, w2.begin, dtype, (experts, dim, hidden)),
            int(metadata["period"]) if "period" in metadata else None,
        )


@dataclass
class Case:
    """A batch of tokens and who works on them."""

    x: np.ndarray
    """Hidden states, `[T, D]`, f32."""
    experts: np.ndarray
    """`[T, k]`, int32."""
    weights: np.ndarray
    """Weights of the experts' outputs, `[T, k]`, f32."""


def find_case(inputs: dict[str, Tensor], tokens: int, variant: int) -> Case:
    """The case of so many tokens; there may be fewer variants than are asked for, which then come round again."""
    experts = inputs[f"{tokens}.experts"].array("<i4")
    weights = inputs[f"{tokens}.weights"].array("<f4")
    at = variant % len(experts)
    return Case(inputs[f"{tokens}.x"].array("<f4"), experts[at], weights[at])


class Contestant(Protocol):
    def prepare(self, case: Case) -> None:
        """Makes ready for a case: what a model would hold already in that form. Not timed."""

    def run(self) -> None:
        """Computes the experts' weighted sums. Timed."""

    def output(self) -> np.ndarray:
        """The result of the last run, `[T, D]`, f32."""


def serve(load: Callable[[Layer, int], tuple[str, Contestant]]) -> None:
    """Answers lines until there are no more; the program's arguments are the directory, `map` or `read`, and the threads."""
    directory, access, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    inputs = open_tensors(directory / "inputs.safetensors")
    description, contestant = load(Layer.open(directory, access), threads)
    serve_lines(description, lambda words: answer(inputs, contestant, words))


def serve_lines(description: str, answer: Callable[[list[str]], str]) -> None:
    """Says that it is ready, and answers the words of one line after the other until there are no more."""
    print("ready", description, flush=True)
    for line in sys.stdin:
        try:
            print(answer(line.split()), flush=True)
        except Exception as error:
            print("error:", " ".join(str(error).split()), flush=True)


def answer(inputs: dict[str, Tensor], contestant: Contestant, words: list[str]) -> str:
    match words:
        case ["run", tokens, variant, calls]:
            seconds = 0.0
            for call in range(int(calls)):
                contestant.prepare(find_case(inputs, int(tokens), int(variant) + call))
                begun = perf_counter()
                contestant.run()
                seconds += perf_counter() - begun
            return str(seconds / int(calls))
        case ["output", tokens, variant, path]:
            contestant.prepare(find_case(inputs, int(tokens), int(variant)))
            contestant.run()
            contestant.output().astype("<f4").tofile(path)
            return "ok"
        case _:
            raise ValueError(f"what is {words}?")
