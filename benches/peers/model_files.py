"""Whole models: Mixtral's width and few layers, random weights in the hub's layout, and what llama.cpp makes of them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from layer_files import narrow, safetensors_header

HERE = Path(__file__).resolve().parent
# Of Mixtral, 32,000 pieces: llama.cpp's converter wants one, though nobody encodes a text.
TOKENIZER = HERE.parents[1] / "mixtral-model/tests/fixtures/tokenizer/tokenizer.model"
VOCABULARY = 32000
# Where `model.sh` unpacks it.
CONVERTER = HERE / f".data/llama.cpp-{version('llama-cpp-python')}/convert_hf_to_gguf.py"
# What llama.cpp's quantiser calls its types (`llama_ftype`). Files of 16 bits come from the converter.
QUANTISED = {"Q4_0": 2, "Q8_0": 7, "Q3_K_M": 12, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "IQ4_XS": 30}
CONVERTED = ["bf16", "f16", "f32"]


@dataclass(frozen=True)
class Geometry:
    layers: int
    dim: int
    hidden: int
    experts: int
    chosen: int

    @property
    def heads(self) -> int:
        return self.dim // 128

    @property
    def kv_heads(self) -> int:
        return self.heads // 4

    @property
    def kv_weights(self) -> int:
        """Of the maps to keys and values in a layer."""
        return 2 * 128 * self.kv_heads * self.dim

    @property
    def layer_weights(self) -> int:
        """Of a layer, those that work on a token, the gate's apart."""
        return self.kv_weights + 2 * self.dim * self.dim + self.chosen * 3 * self.dim * self.hidden

    @property
    def head_weights(self) -> int:
        return VOCABULARY * self.dim

    def flops_of_prompt(self, tokens: int, logits: int) -> float:
        """Useful operations of the matrices: in the last layer, tokens without logits need keys and values only."""
        everywhere = (self.layers - 1) * self.layer_weights + self.kv_weights
        return 2.0 * (tokens * everywhere + logits * (self.layer_weights - self.kv_weights + self.head_weights))

    def weights_of_token(self) -> int:
        """Weights that one token needs, each read once."""
        return self.layers * self.layer_weights + self.head_weights

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        dim, hidden, kv = self.dim, self.hidden, 128 * self.kv_heads
        yield "model.embed_tokens.weight", (VOCABULARY, dim)
        for n in range(self.layers):
            layer = f"model.layers.{n}"
            yield f"{layer}.input_layernorm.weight", (dim,)
            for name, rows in [("q", dim), ("k", kv), ("v", kv), ("o", dim)]:
                yield f"{layer}.self_attn.{name}_proj.weight", (rows, dim)
            yield f"{layer}.post_attention_layernorm.weight", (dim,)
            yield f"{layer}.block_sparse_moe.gate.weight", (self.experts, dim)
            for e in range(self.experts):
                for name, shape in [("w1", (hidden, dim)), ("w2", (dim, hidden)), ("w3", (hidden, dim))]:
                    yield f"{layer}.block_sparse_moe.experts.{e}.{name}.weight", shape
        yield "model.norm.weight", (dim,)
        yield "lm_head.weight", (VOCABULARY, dim)

    def config(self) -> dict:
        return {
            "architectures": ["MixtralForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": self.dim,
            "intermediate_size": self.hidden,
            "max_position_embeddings": 32768,
            "model_type": "mixtral",
            "num_attention_heads": self.heads,
            "num_experts_per_tok": self.chosen,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "num_local_experts": self.experts,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": VOCABULARY,
        }


def write_model(directory: Path, geometry: Geometry) -> None:
    """A checkpoint in bf16. Rows are scaled to keep values of order 1."""
    path = directory / "model.safetensors"
    if path.exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(geometry.config(), indent=1))
    shutil.copy(TOKENIZER, directory / "tokenizer.model")
    random = np.random.default_rng(8)
    unfinished = path.with_suffix(".part")
    with open(unfinished, "wb") as file:
        file.write(safetensors_header({name: ("BF16", shape) for name, shape in geometry.tensors()}))
        for name, shape in geometry.tensors():
            if len(shape) == 1:
                file.write(narrow(np.ones(shape, np.float32), "bf16"))
                continue
            # Variance 1 over the columns, but for the embedding, of which each row is a hidden state.
            variance = 1 if "embed" in name else 1 / shape[1]
            scale = np.float32(2 * np.sqrt(3 * variance))
            for begin in range(0, shape[0], 512):
                values = random.random((min(512, shape[0] - begin), shape[1]), np.float32)
                file.write(narrow((values - np.float32(0.5)) * scale, "bf16"))
    unfinished.rename(path)


def write_ids(path: Path, count: int) -> None:
    """Token ids, as little-endian 32-bit integers: BOS, then any that are no control tokens or bytes."""
    ids = np.random.default_rng(9).integers(259, VOCABULARY, count, dtype=np.uint32)
    ids[0] = 1
    ids.astype("<u4").tofile(path)


def write_gguf(directory: Path, type: str) -> Path:
    """The checkpoint as a file of llama.cpp's: by its converter, and then its quantiser for quantised types."""
    path = directory / f"{type}.gguf"
    if path.exists():
        return path
    unfinished = path.with_suffix(".part")
    if type in CONVERTED:
        command = [sys.executable, CONVERTER, directory, "--outfile", unfinished, "--outtype", type]
        subprocess.run(command, check=True, stdout=sys.stderr)
    else:
        import llama_cpp as lib

        source = write_gguf(directory, "bf16")
        params = lib.llama_model_quantize_default_params()
        params.ftype = QUANTISED[type]
        status = lib.llama_model_quantize(str(source).encode(), str(unfinished).encode(), params)
        if status != 0:
            raise RuntimeError(f"llama.cpp cannot quantise to {type}: status {status}")
    unfinished.rename(path)
    return path
