"""A Mixtral of any size as a GGUF file in the types of llama.cpp's Q4_K_M for eight experts, with random weights.

    python random_gguf.py --layers 32 --out mixtral-8x7b.gguf

Quants are random bytes and scales finite, so that any part of the file costs what a model's would, and nothing is quantised: the full
geometry, 28 GB, is written as fast as the disk takes it. A row's weights have about the variance that keeps values of order 1.
"""

import argparse
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from model_files import Geometry, VOCABULARY

ALIGNMENT = 32
# Of ggml: number, elements and bytes of a block, and where its half-precision scales are, each with the size of a weight of the block
# whose scale is 1 (its quants, times its 6-bit scales, of about that root mean square).
TYPES = {
    "F32": (0, 1, 4, {}),
    "Q8_0": (8, 32, 34, {0: 74.0}),
    "Q4_K": (12, 256, 144, {0: 152.0}),
    "Q5_K": (13, 256, 176, {0: 305.0}),
    "Q6_K": (14, 256, 210, {208: 1366.0}),
}
# Bytes of random quants, written again and again from another place each time.
POOL = 64 << 20

U32, I32, F32, STRING, ARRAY = 4, 5, 6, 8, 9
# Kinds of pieces.
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def tensors(geometry: Geometry) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, type, and shape, outermost first."""
    dim, hidden, experts, kv = geometry.dim, geometry.hidden, geometry.experts, 128 * geometry.kv_heads
    yield "token_embd.weight", "Q4_K", (VOCABULARY, dim)
    for n in range(geometry.layers):
        # More bits for the first and last eighth, and of the others for every third.
        eighth = geometry.layers // 8
        more = n < eighth or n >= 7 * geometry.layers // 8 or (n - eighth) % 3 == 2
        yield f"blk.{n}.attn_norm.weight", "F32", (dim,)
        yield f"blk.{n}.attn_q.weight", "Q4_K", (dim, dim)
        yield f"blk.{n}.attn_k.weight", "Q8_0", (kv, dim)
        yield f"blk.{n}.attn_v.weight", "Q8_0", (kv, dim)
        yield f"blk.{n}.attn_output.weight", "Q5_K", (dim, dim)
        yield f"blk.{n}.ffn_norm.weight", "F32", (dim,)
        yield f"blk.{n}.ffn_gate_inp.weight", "F32", (experts, dim)
        yield f"blk.{n}.ffn_gate_exps.weight", "Q4_K", (experts, hidden, dim)
        yield f"blk.{n}.ffn_up_exps.weight", "Q4_K", (experts, hidden, dim)
        yield f"blk.{n}.ffn_down_exps.weight", "Q6_K" if more else "Q4_K", (experts, dim, hidden)
    yield "output_norm.weight", "F32", (dim,)
    yield "output.weight", "Q6_K", (VOCABULARY, dim)


def size(kind: str, shape: tuple[int, ...]) -> int:
    _, elements, block, _ = TYPES[kind]
    return int(np.prod(shape)) // elements * block


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def metadata(geometry: Geometry) -> list[bytes]:
    def entry(key: str, kind: int, value: bytes) -> bytes:
        return string(key) + struct.pack("<I", kind) + value

    sizes = {
        "vocab_size": VOCABULARY,
        "context_length": 32768,
        "embedding_length": geometry.dim,
        "block_count": geometry.layers,
        "feed_forward_length": geometry.hidden,
        "attention.head_count": geometry.heads,
        "attention.head_count_kv": geometry.kv_heads,
        "rope.dimension_count": 128,
        "expert_count": geometry.experts,
        "expert_used_count": geometry.chosen,
    }
    reals = {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 1e6}
    entries = [entry("general.architecture", STRING, string("llama")), entry("general.file_type", U32, struct.pack("<I", 15))]
    entries += [entry(f"llama.{key}", U32, struct.pack("<I", value)) for key, value in sizes.items()]
    entries += [entry(f"llama.{key}", F32, struct.pack("<f", value)) for key, value in reals.items()]
    # Pieces that mean nothing, in the order of sentencepiece's: such a model is tried on ids, but llama.cpp's server wants a vocabulary.
    special = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)] + [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    pieces = special + [(f"\u2581{n}", NORMAL) for n in range(len(special), VOCABULARY)]

    def array(kind: int, values: list[bytes]) -> bytes:
        return struct.pack("<IQ", kind, len(values)) + b"".join(values)

    return [
        *entries,
        entry("tokenizer.ggml.model", STRING, string("llama")),
        entry("tokenizer.ggml.tokens", ARRAY, array(STRING, [string(piece) for piece, _ in pieces])),
        entry("tokenizer.ggml.scores", ARRAY, array(F32, [struct.pack("<f", -n) for n in range(VOCABULARY)])),
        entry("tokenizer.ggml.token_type", ARRAY, array(I32, [struct.pack("<i", kind) for _, kind in pieces])),
    ]


def pool(kind: str, variance: float, random: np.random.Generator) -> memoryview:
    """Random blocks, of which every weight is finite and the variance about as wanted."""
    _, _, block, scales = TYPES[kind]
    blocks = random.integers(0, 256, (POOL // block, block), dtype=np.uint8)
    for at, unit in scales.items():
        scale = np.full(len(blocks), np.sqrt(variance) / unit, "<f2")
        blocks[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
        if kind in ("Q4_K", "Q5_K"):
            # A minimum of the middle quant, so that weights lie about zero.
            middle = {"Q4_K": 7.5, "Q5_K": 15.5}[kind]
            minimum = (scale.astype(np.float32) * np.float32(middle)).astype("<f2")
            blocks[:, 2:4] = minimum.view(np.uint8).reshape(-1, 2)
            # Eight scales and eight minima of six bits, all of them 33: the first four of each with two bits of the others above
            # them, and then the others' low bits.
            blocks[:, 4:12], blocks[:, 12:16] = 0xA1, 0x11
    return memoryview(blocks.reshape(-1))


def write(path: Path, geometry: Geometry, seed: int = 8) -> None:
    random = np.random.default_rng(seed)
    listed = list(tensors(geometry))
    entries = metadata(geometry)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(listed), len(entries)) + b"".join(entries)
    offset = 0
    for name, kind, shape in listed:
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += string(name) + dimensions + struct.pack("<IQ", TYPES[kind][0], offset)
        offset += -(-size(kind, shape) // ALIGNMENT) * ALIGNMENT
    head += bytes(-len(head) % ALIGNMENT)
    pools: dict[tuple[str, int], memoryview] = {}
    unfinished = path.with_suffix(".part")
    with open(unfinished, "wb") as file:
        file.write(head)
        for name, kind, shape in listed:
            left = size(kind, shape)
            if kind == "F32":
                values = np.ones(shape, "<f4") if len(shape) == 1 else random.standard_normal(shape, np.float32) / np.sqrt(shape[-1])
                file.write(values.astype("<f4").tobytes())
            else:
                columns = 1 if name.startswith("token_embd") else shape[-1]
                if (kind, columns) not in pools:
                    pools[kind, columns] = pool(kind, 1 / columns, random)
                blocks = pools[kind, columns]
                block = TYPES[kind][2]
                while left:
                    begin = int(random.integers(0, len(blocks) // block // 2)) * block
                    part = blocks[begin : begin + left]
                    file.write(part)
                    left -= len(part)
            file.write(bytes(-size(kind, shape) % ALIGNMENT))
    unfinished.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--layers", type=int, default=32)
    option("--dim", type=int, default=4096, help="width of a hidden state, a multiple of 512")
    option("--hidden", type=int, default=14336, help="hidden width of an expert, a multiple of 256")
    option("--experts", type=int, default=8)
    option("--chosen", type=int, default=2)
    option("--out", type=Path, required=True)
    args = parser.parse_args()
    geometry = Geometry(args.layers, args.dim, args.hidden, args.experts, args.chosen)
    write(args.out, geometry)
    print(f"{args.out}: {args.out.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
