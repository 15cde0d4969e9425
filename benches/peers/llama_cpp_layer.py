"""Mixtral's experts in llama.cpp's operations: the graph it builds for such a layer, on the ggml that llama-cpp-python ships."""

import ctypes
import importlib.metadata
import importlib.util
from collections.abc import Callable
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from contestant import BLOCKS, Case, Layer, Tensor, serve

F32, I32 = 0, 26
TYPES = {"F32": F32, "F16": 1, "BF16": 30} | {name.upper(): block.ggml for name, block in BLOCKS.items()}


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


P = c_void_p
# Result and arguments of the functions that are used; each of ggml's objects is an opaque pointer.
FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "version": (c_char_p, []),
    "init": (P, [InitParams]),
    "free": (None, [P]),
    "new_tensor_2d": (P, [P, c_int, c_int64, c_int64]),
    "new_tensor_3d": (P, [P, c_int, c_int64, c_int64, c_int64]),
    "view_2d": (P, [P, P, c_int64, c_int64, c_size_t, c_size_t]),
    "view_3d": (P, [P, P, c_int64, c_int64, c_int64, c_size_t, c_size_t, c_size_t]),
    "mul_mat_id": (P, [P, P, P, P]),
    "swiglu_split": (P, [P, P, P]),
    "mul": (P, [P, P, P]),
    "add": (P, [P, P, P]),
    "cont": (P, [P, P]),
    "new_graph": (P, [P]),
    "build_forward_expand": (None, [P, P]),
    "backend_cpu_init": (P, []),
    "backend_cpu_set_n_threads": (None, [P, c_int]),
    "backend_cpu_buffer_from_ptr": (P, [P, c_size_t]),
    "backend_tensor_alloc": (c_int, [P, P, P]),
    "backend_alloc_ctx_tensors": (P, [P, P]),
    "backend_buffer_free": (None, [P]),
    "backend_tensor_set": (None, [P, P, c_size_t, c_size_t]),
    "backend_tensor_get": (None, [P, P, c_size_t, c_size_t]),
    "backend_graph_compute": (c_int, [P, P]),
}


class Ggml:
    def __init__(self) -> None:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            raise ImportError("llama-cpp-python is not installed")
        # It brings the base library along.
        self.library = ctypes.CDLL(str(Path(spec.origin).parent / "lib/libggml-cpu.so"))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The function `ggml_name`, looked up once."""
        function = getattr(self.library, f"ggml_{name}")
        function.restype, function.argtypes = FUNCTIONS[name]
        setattr(self, name, function)
        return function

    def context(self, size: int) -> int:
        """A context for what describes tensors, not for their elements."""
        return self.init(InitParams(size, None, True))


class LlamaCpp:
    def __init__(self, ggml: Ggml, layer: Layer, threads: int):
        self.ggml, self.layer = ggml, layer
        self.backend = ggml.backend_cpu_init()
        ggml.backend_cpu_set_n_threads(self.backend, threads)
        self.weights = ggml.context(1 << 16)
        self.gate_up = self.mapped(layer.gate_up)
        self.down = self.mapped(layer.down)
        self.context = self.buffer = 0
        self.shape = (0, 0)

    def mapped(self, tensor: Tensor) -> int:
        """A tensor whose elements stay where they lie in the mapped file."""
        ggml, (experts, rows, columns) = self.ggml, tensor.shape
        elements = tensor.bytes()
        buffer = ggml.backend_cpu_buffer_from_ptr(elements.ctypes.data, elements.nbytes)
        result = ggml.new_tensor_3d(self.weights, TYPES[tensor.dtype], columns, rows, experts)
        ggml.backend_tensor_alloc(buffer, result, elements.ctypes.data)
        return result

    def build(self, tokens: int, chosen: int) -> None:
        """The graph for so many tokens. Sizes are innermost first, as is ggml's way."""
        ggml, dim, hidden, experts = self.ggml, self.layer.dim, self.layer.hidden, self.layer.experts
        if self.context:
            ggml.backend_buffer_free(self.buffer)
            ggml.free(self.context)
        self.shape = (tokens, chosen)
        self.context = context = ggml.context(1 << 20)
        self.x = ggml.new_tensor_3d(context, F32, dim, 1, tokens)
        self.ids = ggml.new_tensor_2d(context, I32, chosen, tokens)
        self.factors = ggml.new_tensor_3d(context, F32, 1, chosen, tokens)

        row = self.layer.gate_up.row_bytes
        w1, w3 = (
            ggml.view_3d(context, self.gate_up, dim, hidden, experts, row, 2 * hidden * row, begin * row)
            for begin in (0, hidden)
        )
        up = ggml.mul_mat_id(context, w3, self.x, self.ids)
        gate = ggml.mul_mat_id(context, w1, self.x, self.ids)
        out = ggml.mul_mat_id(context, self.down, ggml.swiglu_split(context, gate, up), self.ids)
        out = ggml.mul(context, out, self.factors)
        parts = [ggml.view_2d(context, out, dim, tokens, 4 * dim * chosen, 4 * dim * i) for i in range(chosen)]
        self.y = ggml.cont(context, parts[0]) if chosen == 1 else parts[0]
        for part in parts[1:]:
            self.y = ggml.add(context, self.y, part)

        self.graph = ggml.new_graph(context)
        ggml.build_forward_expand(self.graph, self.y)
        self.buffer = ggml.backend_alloc_ctx_tensors(context, self.backend)

    def prepare(self, case: Case) -> None:
        """Activations are f32, which ggml rounds to the weights' type, or to int8 in blocks where weights are in blocks."""
        if self.shape != case.experts.shape:
            self.build(*case.experts.shape)
        for tensor, values in [(self.x, case.x), (self.ids, case.experts), (self.factors, case.weights)]:
            self.ggml.backend_tensor_set(tensor, values.ctypes.data, 0, values.nbytes)

    def run(self) -> None:
        status = self.ggml.backend_graph_compute(self.backend, self.graph)
        if status != 0:
            raise RuntimeError(f"ggml's status is {status}")

    def output(self) -> np.ndarray:
        y = np.empty((self.shape[0], self.layer.dim), np.float32)
        self.ggml.backend_tensor_get(self.y, y.ctypes.data, 0, y.nbytes)
        return y


def load(layer: Layer, threads: int) -> tuple[str, LlamaCpp]:
    ggml = Ggml()
    description = f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}, ggml {ggml.version().decode()}"
    return description, LlamaCpp(ggml, layer, threads)


if __name__ == "__main__":
    serve(load)
