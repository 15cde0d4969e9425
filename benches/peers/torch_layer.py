"""Mixtral's experts of Transformers on torch, in whichever of their implementations is fastest for a number of tokens."""

import sys
from time import perf_counter

import numpy as np
import torch
import transformers
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from contestant import Case, Layer, Tensor, serve

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Torch:
    def __init__(self, layer: Layer):
        self.dtype = DTYPES[layer.down.dtype]
        self.config = MixtralConfig(
            hidden_size=layer.dim,
            intermediate_size=layer.hidden,
            num_local_experts=layer.experts,
        )
        with torch.device("meta"):
            self.experts = MixtralExperts(self.config)
        self.experts.gate_up_proj = self.parameter(layer.gate_up)
        self.experts.down_proj = self.parameter(layer.down)
        self.fastest: dict[int, str] = {}

    def parameter(self, tensor: Tensor) -> torch.nn.Parameter:
        flat = torch.frombuffer(tensor.map, dtype=self.dtype, count=int(np.prod(tensor.shape)), offset=tensor.begin)
        return torch.nn.Parameter(flat.reshape(tensor.shape), requires_grad=False)

    def prepare(self, case: Case) -> None:
        """Activations are of the weights' type."""
        self.x = torch.tensor(case.x).to(self.dtype)
        self.index = torch.tensor(case.experts, dtype=torch.int64)
        self.weights = torch.tensor(case.weights)
        tokens = len(case.x)
        if tokens not in self.fastest:
            self.fastest[tokens] = self.choose(tokens)
        self.config._experts_implementation = self.fastest[tokens]

    def choose(self, tokens: int) -> str:
        # `batched_mm` copies an expert's weights for each token.
        names = ["eager", "grouped_mm"] + ["batched_mm"] * (tokens == 1)
        times = {name: self.time(name) for name in names}
        for _ in range(2 if max(times.values()) > 1 else 6):
            times = {name: min(times[name], self.time(name)) for name in names}
        print(f"{tokens} tokens:", times, file=sys.stderr)
        return min(times, key=lambda name: times[name])

    def time(self, name: str) -> float:
        self.config._experts_implementation = name
        begun = perf_counter()
        self.run()
        return perf_counter() - begun

    @torch.inference_mode()
    def run(self) -> None:
        self.y = self.experts(self.x, self.index, self.weights)

    def output(self) -> np.ndarray:
        return self.y.to(torch.float32).numpy()


def load(layer: Layer, threads: int) -> tuple[str, Torch]:
    torch.set_num_threads(threads)
    return f"torch {torch.__version__}, transformers {transformers.__version__}", Torch(layer)


if __name__ == "__main__":
    serve(load)
