"""Scores a model with lm-evaluation-harness through `mixtral serve`, and directly, on two tasks made of a text.

    pip install "lm-eval[api]" safetensors
    cargo build --release
    python docs/tools/evaluate.py --text mixtral-model/cli/demo/heldout.txt

A multiple choice: which of four stretches of the text goes on from a context; and the perplexity of paragraphs. "Directly" means that the
harness is given log-probabilities which numpy computes from what `mixtral logits` writes, in place of the server's. Scores must be the
same, and so they must be for every number of requests at a time.
"""

import argparse
import functools
import json
import random
import subprocess
import tempfile
from pathlib import Path

import lm_eval
import numpy as np
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.openai_completions import LocalCompletionsAPI
from safetensors.numpy import load_file

CONTEXT, CHOICE, CHOICES = 30, 8, 4  # words, words, stretches
SEED = 1234


def tasks(text: str, documents: int, directory: Path) -> list[ConfigurableTask]:
    words, draw = text.split(), random.Random(SEED)
    length = CONTEXT + CHOICE
    starts = draw.sample(range(0, len(words) - length, CHOICE), documents)
    stretch = lambda begin, count: " ".join(words[begin : begin + count])
    questions = []
    for begin in starts:
        others = draw.sample([other for other in starts if other != begin], CHOICES - 1)
        choices = [stretch(at + CONTEXT, CHOICE) for at in (begin, *others)]
        order = draw.sample(range(CHOICES), CHOICES)
        questions.append({
            "context": stretch(begin, CONTEXT),
            "choices": [choices[n] for n in order],
            "answer": order.index(0),
        })
    paragraphs = [{"text": part} for part in text.split("\n\n") if len(part) > 200][:documents]

    def task(name: str, rows: list[dict], **config) -> ConfigurableTask:
        path = directory / f"{name}.json"
        path.write_text(json.dumps(rows))
        files = {"data_files": {"test": str(path)}}
        return ConfigurableTask(config={
            "task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", **config,
        })

    return [
        task("goes_on", questions, output_type="multiple_choice", doc_to_text="{{context}}", doc_to_choice="choices",
             doc_to_target="answer", metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}]),
        task("paragraphs", paragraphs, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}",
             metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}]),
    ]


class Direct(LocalCompletionsAPI):
    """The harness's own model, with numpy in place of the server's log-probabilities."""

    def __init__(self, command: list[str], **kwargs):
        super().__init__(**kwargs)
        self.command = command

    def model_call(self, messages, *, generate=True, gen_kwargs=None, **kwargs):
        assert not generate
        prompts = messages if isinstance(messages[0], list) else [messages]
        return {"choices": [{"index": n, "logprobs": self.scores(tuple(ids))} for n, ids in enumerate(prompts)]}

    @functools.cache
    def scores(self, ids: tuple[int, ...]) -> dict:
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "logits"
            line = [self.command[0], "logits", *self.command[1:], "--ids", ",".join(map(str, ids)), "--out", str(out)]
            subprocess.run(line, check=True, capture_output=True)
            logits = load_file(out)["logits"].astype(np.float64)
        most = logits.max(axis=1, keepdims=True)
        logprobs = logits - most - np.log(np.exp(logits - most).sum(axis=1, keepdims=True))
        own = [float(row[id]) for row, id in zip(logprobs, ids[1:])]
        tops = [{str(row.argmax()): float(row.max())} for row in logprobs[:-1]]
        # The harness leaves out the token that was drawn.
        return {"token_logprobs": [None, *own, 0.0], "top_logprobs": [None, *tops, {}]}


def scored(model, text: str, documents: int) -> dict:
    with tempfile.TemporaryDirectory() as directory:
        made = tasks(text, documents, Path(directory))
        found = lm_eval.simple_evaluate(model=model, tasks=made, bootstrap_iters=0, verbosity="ERROR")
    numbers = {name: {k: v for k, v in of.items() if isinstance(v, float) and "stderr" not in k} for name, of in found["results"].items()}
    answers = [[sample["resps"] for sample in found["samples"][task]] for task in ("goes_on", "paragraphs")]
    return {"numbers": numbers, "answers": answers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--text", type=Path, required=True)
    option("--mixtral", default="target/release/mixtral")
    option("--model", help="as mixtral takes it; default: its demo")
    option("--documents", type=int, default=100)
    option("--at-a-time", type=int, nargs="+", default=[1, 8, 32])
    args = parser.parse_args()
    text = args.text.read_text()
    model = [] if args.model is None else ["-m", args.model]
    line = [args.mixtral, "serve", "--port", "0", "--model-name", "it", "--sessions", "16", *model]
    server = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().removeprefix("listening on ").strip() + "/v1/completions"
        common = {"model": "it", "base_url": url, "tokenizer_backend": "remote", "seed": SEED, "max_length": 512}
        direct = scored(Direct([args.mixtral, *model], **common), text, args.documents)
        print("directly".ljust(20), json.dumps(direct["numbers"]))
        served = None
        for count in args.at_a_time:
            found = scored(LocalCompletionsAPI(**common, num_concurrent=count), text, args.documents)
            same = "the same" if found["numbers"] == direct["numbers"] else "NOT THE SAME"
            # numpy sums the exponentials in another order than the server.
            largest = max(difference(found["answers"], direct["answers"]), default=0.0)
            print(f"{count} at a time".ljust(20), json.dumps(found["numbers"]), f"{same}; log-likelihoods differ by at most {largest:.1e}")
            assert largest < 1e-9
            served = served or found["answers"]
            assert found["answers"] == served, "the server's answers depend on how many requests there are"
    finally:
        server.terminate()
        server.wait()


def difference(one, other):
    """Differences of the numbers of two nests of lists, of which everything else must be equal."""
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other):
            yield from difference(a, b)
    elif isinstance(one, float):
        yield abs(one - other)
    else:
        assert str(one) == str(other), (one, other)


if __name__ == "__main__":
    main()
