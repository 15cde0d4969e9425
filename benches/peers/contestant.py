"""What contestants in Python share: the files they read and the lines they answer (see src/lib.rs)."""

import json
import mmap
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np


@dataclass
class Tensor:
    """A tensor of a mapped safetensors file: where its bytes begin, not a copy."""

    map: mmap.mmap
    begin: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next."""
        return self.shape[-1] * (4 if self.dtype == "F32" else 2)

    def array(self, dtype: str) -> np.ndarray:
        return np.frombuffer(self.map, dtype, int(np.prod(self.shape)), self.begin).reshape(self.shape)


def open_tensors(path: Path, access: str = "map") -> dict[str, Tensor]:
    """The tensors of a file that is mapped, or read into memory of its own (`read`)."""
    with open(path, "rb") as file:
        if access == "read":
            map = mmap.mmap(-1, path.stat().st_size)
            file.readinto(map)
        else:
            # Copy-on-write, for libraries that insist on memory they may write to.
            map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    length = int.from_bytes(map[:8], "little")
    header = json.loads(map[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: Tensor(map, 8 + length + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
        for name, entry in header.items()
    }


@dataclass
class Layer:
    """The experts' weights. The file has w1 and w3 of each expert side by side, then every w2, so that both are one tensor."""

    gate_up: Tensor
    """`[E, 2 H, D]`: w1 above w3."""
    down: Tensor
    """`[E, D, H]`."""

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
        hidden, dim = w1.shape
        return cls(
            Tensor(w1.map, w1.begin, w1.dtype, (experts, 2 * hidden, dim)),
            Tensor(w2.map, w2.begin, w2.dtype, (experts, dim, hidden)),
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
