"""Whole models in llama.cpp, by the library that llama-cpp-python ships; answers the lines of `src/bin/ours_model.rs`."""

import ctypes
import importlib.metadata
import sys
from pathlib import Path
from time import perf_counter

import llama_cpp as lib
import numpy as np

from contestant import serve_lines


class Model:
    """All settings are llama.cpp's own but for the number of threads and that the prompt is one batch, as ours is."""

    def __init__(self, path: Path, ids: np.ndarray, prompt: int, threads: int):
        self.ids, self.prompt = ids, prompt
        self.model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        params = lib.llama_context_default_params()
        params.n_ctx = len(ids)
        params.n_batch = params.n_ubatch = prompt
        params.n_threads = params.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp has no context for {path}")
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.batch = lib.llama_batch_init(prompt, 0, 1)

    def describe(self) -> str:
        text = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self.model, text, len(text))
        return text.value.decode()

    def decode(self, begin: int, end: int, all_logits: bool) -> None:
        """Reads ids `begin..end`, which follow what the cache holds; the last one's logits are always wanted."""
        batch = self.batch
        batch.n_tokens = end - begin
        for i in range(end - begin):
            batch.token[i], batch.pos[i] = int(self.ids[begin + i]), begin + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = all_logits or begin + i == end - 1
        status = lib.llama_decode(self.context, batch)
        if status != 0:
            raise RuntimeError(f"llama.cpp's status is {status}")
        lib.llama_synchronize(self.context)

    def read_prompt(self, all_logits: bool) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(self.context), False)
        self.decode(0, self.prompt, all_logits)

    def run(self, all_logits: bool, tokens: int) -> tuple[float, float]:
        begun = perf_counter()
        self.read_prompt(all_logits)
        of_prompt = perf_counter() - begun
        begun = perf_counter()
        for at in range(self.prompt, self.prompt + tokens):
            self.decode(at, at + 1, False)
        return of_prompt, (perf_counter() - begun) / max(tokens, 1)

    def logits(self) -> np.ndarray:
        self.read_prompt(True)
        return np.ctypeslib.as_array(lib.llama_get_logits(self.context), (self.prompt, self.vocabulary))

    def answer(self, words: list[str]) -> str:
        match words:
            case ["run", wanted, tokens]:
                return " ".join(map(str, self.run(wanted == "all", int(tokens))))
            case ["logits", path]:
                self.logits().astype("<f4").tofile(path)
                return "ok"
            case _:
                raise ValueError(f"what is {words}?")


def main() -> None:
    path, ids, prompt, threads = sys.argv[1:]
    model = Model(Path(path), np.fromfile(ids, "<u4"), int(prompt), int(threads))
    version = importlib.metadata.version("llama-cpp-python")
    serve_lines(f"llama-cpp-python {version}, {model.describe()}", model.answer)


if __name__ == "__main__":
    main()
