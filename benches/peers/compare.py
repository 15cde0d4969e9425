"""Times the experts of one Mixtral layer in several implementations, side by side; `run.sh` sets up what this needs."""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Ours, by the type to which it rounds activations. The first is always there: it measures the machine's limits.
OURS = {"ours": "f32", "ours-bf16-activations": "bf16"}
PEERS = ("llama.cpp", "torch", "candle")
# Relative error ‖y − ref‖ / ‖ref‖ that is let pass, by the type in which a contestant has its activations: some ten units
# in the last place, for sums of thousands of products and a result rounded once more.
TOLERANCE = {"f32": 1e-5, "f16": 3e-3, "bf16": 2e-2}


def arguments() -> argparse.Namespace:
    def several(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(n) for n in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dtype", type=several, default="bf16,f16,f32", help="types of the weights")
    parser.add_argument("--tokens", type=numbers, default="1,8,32,128,512", help="tokens in a batch")
    parser.add_argument("--dim", type=int, default=4096, help="width of a hidden state")
    parser.add_argument("--hidden", type=int, default=14336, help="hidden width of an expert")
    parser.add_argument("--experts", type=int, default=8, help="number of experts")
    parser.add_argument("--chosen", type=int, default=2, help="experts of a token")
    parser.add_argument("--peers", type=several, default=",".join(PEERS), help=f"besides ours: {', '.join([*PEERS, *list(OURS)[1:]])}")
    parser.add_argument("--rounds", type=int, default=9, help="rounds for each number of tokens")
    parser.add_argument("--seconds", type=float, default=120, help="time after which three rounds are enough")
    parser.add_argument("--threads", type=int, default=2, help="threads of each contestant, and processors for all")
    parser.add_argument("--chart", type=Path, default=ROOT / "docs/peers.svg", help="where the chart goes")
    parser.add_argument("--data", type=Path, default=HERE / ".data", help="where weights, results and logs go")
    parser.add_argument("--ours", type=Path, default=HERE / "target/release/ours", help="program")
    parser.add_argument("--candle", type=Path, default=HERE / "target/native/release/candle", help="program")
    return parser.parse_args()


# Before numpy is loaded, which makes its threads then.
ARGS = arguments()
THREADS = {name: str(ARGS.threads) for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
os.environ.update(THREADS, HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")

import numpy as np  # noqa: E402

import layer_files  # noqa: E402
import report  # noqa: E402
from layer_files import Shape  # noqa: E402


class Failure(Exception):
    """Why a contestant could not."""


class Contestant:
    def __init__(self, name: str, directory: Path):
        self.name = name
        self.log = directory / f"{name}.log"
        commands = {ours: [ARGS.ours, directory, activations] for ours, activations in OURS.items()} | {
            "candle": [ARGS.candle, directory],
            "torch": [sys.executable, HERE / "torch_layer.py", directory, str(ARGS.threads)],
            "llama.cpp": [sys.executable, HERE / "llama_cpp_layer.py", directory, str(ARGS.threads)],
        }
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                commands[name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1
            )
        self.description = self.answer().removeprefix("ready ")

    def activations(self, dtype: str) -> str:
        """The type of activations that enter a product."""
        return OURS.get(self.name, dtype)

    def answer(self) -> str:
        line = self.process.stdout.readline().strip()
        if not line:
            raise Failure(f"{self.name} ended with {self.process.wait()}; see {self.log}")
        if line.startswith("error: "):
            raise Failure(f"{self.name}: {line}")
        return line

    def ask(self, *words: object) -> str:
        # Threads that the one before left spinning have gone to sleep by then.
        time.sleep(0.02)
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        return self.answer()

    def output(self, tokens: int, variant: int, dim: int) -> np.ndarray:
        path = self.log.with_suffix(".out")
        self.ask("output", tokens, variant, path)
        y = np.fromfile(path, "<f4").reshape(tokens, dim)
        path.unlink()
        return y

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(dtype: str, shape: Shape) -> dict:
    """Everything about one type of weights: who took part, and the samples for each number of tokens."""
    directory = ARGS.data / f"{shape.dim}x{shape.hidden}x{shape.experts}-{dtype}"
    say(f"{directory.name}: weights and reference")
    layer_files.write_weights(directory / "model.safetensors", shape, dtype)
    layer_files.write_inputs(directory / "inputs.safetensors", shape, ARGS.tokens)
    expected = layer_files.reference(directory, ARGS.tokens)

    contestants, left_out = [], {}
    for name in ["ours", *ARGS.peers]:
        try:
            contestants.append(Contestant(name, directory))
        except Failure as failure:
            give_up_on(name, str(failure), left_out)
    cases = []
    for tokens in ARGS.tokens:
        variants = {v: y for (t, v), y in expected.items() if t == tokens}
        fit, errors = [], {}
        for contestant in contestants:
            limit = TOLERANCE[contestant.activations(dtype)]
            try:
                error = max(relative(contestant.output(tokens, v, shape.dim), y) for v, y in variants.items())
                if not error <= limit:
                    raise Failure(f"{contestant.name}: error {error:.1e} with {tokens} tokens, at most {limit} expected")
                fit.append(contestant)
                errors[contestant.name] = error
            except Failure as failure:
                give_up_on(contestant.name, str(failure), left_out)
        contestants = fit
        case = measure(tokens, touched(directory, tokens), dtype, shape, contestants)
        for row in case["rows"]:
            row["error"] = errors[row["name"]]
            row["activations"] = next(c for c in contestants if c.name == row["name"]).activations(dtype)
        cases.append(case)
    descriptions = {c.name: c.description for c in contestants}
    for contestant in contestants:
        contestant.end()
    return {"dtype": dtype, "contestants": descriptions, "left_out": left_out, "cases": cases}


def give_up_on(name: str, why: str, left_out: dict[str, str]) -> None:
    say(f"left out: {why}")
    if name == "ours":
        raise SystemExit(1)
    left_out[name] = why


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def touched(directory: Path, tokens: int) -> int:
    """Experts that have a token: what must be read."""
    _, _, case = next(layer_files.read_cases(directory / "inputs.safetensors", [tokens]))
    return len(np.unique(case.experts))


def measure(tokens: int, experts: int, dtype: str, shape: Shape, contestants: list[Contestant]) -> dict:
    """Rounds in which each contestant has its turn, beside this machine's limits; who begins, changes."""
    needed = experts * shape.expert_elements * layer_files.BYTES[dtype]
    calls = -(-(128 << 20) // needed)
    limits, seconds = [], {c.name: [] for c in contestants}
    begun = time.monotonic()
    for turn in range(ARGS.rounds):
        limits.append([float(word) for word in contestants[0].ask("limits").split()])
        for i in range(len(contestants)):
            contestant = contestants[(turn + i) % len(contestants)]
            seconds[contestant.name].append(float(contestant.ask("run", tokens, turn * calls, calls)))
        if turn >= 2 and time.monotonic() - begun > ARGS.seconds:
            break
    say(f"  {tokens} tokens: " + ", ".join(f"{name} {np.median(s) * 1e3:.2f} ms" for name, s in seconds.items()))
    return {
        "tokens": tokens,
        "flops": shape.flops(tokens),
        "bytes": needed,
        "limits": limits,
        "rows": [{"name": name, "seconds": s} for name, s in seconds.items()],
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine() -> str:
    with open("/proc/cpuinfo") as file:
        info = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines())
    info = {key.strip(): value.strip() for key, value in info.items()}
    known = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16"]
    has = [name for name in known if name in info.get("flags", "").split()]
    family = f"family {info.get('cpu family')} model {info.get('model')}"
    return f"{info.get('model name', platform.processor())}, {family} ({', '.join(has)}), {ARGS.threads} threads"


def main() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[: ARGS.threads])
    shape = Shape(ARGS.dim, ARGS.hidden, ARGS.experts, ARGS.chosen)
    results = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "command": shlex.join(["benches/peers/run.sh", *sys.argv[1:]]),
        "shape": vars(shape),
        "runs": [],
    }
    for dtype in ARGS.dtype:
        results["runs"].append(compare(dtype, shape))
        (ARGS.data / "results.json").write_text(json.dumps(results, indent=1))
    print(report.table(results))
    ARGS.chart.parent.mkdir(parents=True, exist_ok=True)
    ARGS.chart.write_text(report.chart(results))


if __name__ == "__main__":
    main()
