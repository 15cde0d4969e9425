"""Times the experts of one Mixtral layer in several implementations, side by side; `run.sh` sets up what this needs."""

import argparse
import json
import os
import shlex
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

import layer_files
import report
from contestant import BLOCKS
from layer_files import Shape
from rounds import Contestant, Failure, Round, Watch, machine, quiet_rounds, say

HERE = Path(__file__).resolve().parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target"))
# Ours, by the type to which it rounds activations.
OURS = {"ours": "f32", "ours-bf16-activations": "bf16", "ours-int8-activations": "int8"}
PEERS = ["llama.cpp", "torch", "candle"]
# Who has no products with weights in blocks, and why.
NO_BLOCKS = {
    "ours-bf16-activations": "ours-bf16-activations is for bf16 weights",
    "torch": "torch has no products with weights in ggml's blocks",
    "candle": "candle's own Mixtral, which is what is compared, has no weights in blocks",
}
# Relative error ‖y − ref‖ / ‖ref‖ that is let pass, by the type in which a contestant has its activations: some ten units
# in the last place, for sums of thousands of products and a result rounded once more. Int8 has one scale for 32 or, with
# types in blocks of 256, for 256 activations, of which the largest decides.
TOLERANCE = {"f32": 1e-5, "f16": 3e-3, "bf16": 2e-2, "int8": 4e-2}


def arguments() -> argparse.Namespace:
    def several(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(n) for n in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    option = parser.add_argument
    option("--dtype", type=several, default="bf16,f16,f32", help=f"types of the weights; {', '.join(BLOCKS)} too")
    option("--tokens", type=numbers, default="1,8,32,128,512", help="tokens in a batch")
    option("--dim", type=int, default=4096, help="width of a hidden state")
    option("--hidden", type=int, default=14336, help="hidden width of an expert")
    option("--experts", type=int, default=8, help="number of experts")
    option("--chosen", type=int, default=2, help="experts of a token")
    option("--peers", type=several, default=",".join(PEERS), help=f"of {', '.join([*PEERS, *OURS])}")
    option("--rounds", type=int, default=9, help="rounds for each number of tokens; disturbed ones are played again")
    option("--seconds", type=float, default=120, help="time after which three rounds are enough")
    option("--threads", type=int, default=2, help="threads of each contestant, and processors for all")
    option("--bind", action="store_true", help="keep each of OpenMP's threads on a processor of its own")
    option("--access", choices=["map", "read"], default="map", help="weights shared, or a copy for each, as blocks always have")
    option("--chart", type=Path, default=HERE.parents[1] / "docs/peers.svg", help="where the chart goes")
    option("--data", type=Path, default=HERE / ".data", help="where weights, results and logs go")
    return parser.parse_args()


def start(name: str, directory: Path, access: str, args: argparse.Namespace) -> Contestant:
    threads = str(args.threads)
    ours = [TARGET / "release/ours", directory, access]
    commands: dict[str, list] = {name: [*ours, activations] for name, activations in OURS.items()} | {
        "candle": [TARGET / "native/release/candle", directory],
        "torch": [sys.executable, HERE / "torch_layer.py", directory, access, threads],
        "llama.cpp": [sys.executable, HERE / "llama_cpp_layer.py", directory, access, threads],
    }
    return Contestant(name, commands[name], directory / f"{name}.log", args.threads, args.bind)


def activations_of(name: str, dtype: str) -> str:
    """The type of activations that enter a product with weights of type `dtype`."""
    return OURS.get(name, "int8" if dtype in BLOCKS else dtype)


def output(contestant: Contestant, tokens: int, variant: int, dim: int) -> np.ndarray:
    path = contestant.log.with_suffix(".out")
    contestant.ask("output", tokens, variant, path)
    y = np.fromfile(path, "<f4").reshape(tokens, dim)
    path.unlink()
    return y


def compare(dtype: str, shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one type of weights: who took part, and the samples for each number of tokens."""
    directory = args.data / f"{shape.dim}x{shape.hidden}x{shape.experts}-{dtype}"
    say(f"{directory.name}: weights and reference")
    layer_files.write_weights(directory / "model.safetensors", shape, dtype)
    access = "read" if dtype in BLOCKS else args.access
    kept = layer_files.keep_in_memory(directory / "model.safetensors") if access == "map" else None
    layer_files.write_inputs(directory / "inputs.safetensors", shape, args.tokens)
    expected = layer_files.reference(directory, args.tokens)

    contestants: list[Contestant] = []
    left_out: dict[str, str] = {}
    # The first measures the machine's limits, and there is nothing to compare with without it.
    first = "ours-int8-activations" if dtype in BLOCKS else "ours"
    for name in dict.fromkeys([first, *args.peers]):
        try:
            if dtype in BLOCKS and name in NO_BLOCKS:
                raise Failure(NO_BLOCKS[name])
            contestants.append(start(name, directory, access, args))
        except Failure as failure:
            give_up_on(name, failure, left_out, first)
    everyone = list(contestants)
    cases = []
    for tokens in args.tokens:
        variants = {variant: y for (count, variant), y in expected.items() if count == tokens}
        errors: dict[str, float] = {}
        for contestant in list(contestants):
            try:
                errors[contestant.name] = check(contestant, tokens, variants, dtype)
            except Failure as failure:
                give_up_on(contestant.name, failure, left_out, first)
                contestants.remove(contestant)
        case = measure(tokens, touched(directory, tokens), dtype, shape, contestants, args)
        for row in case["rows"]:
            row["error"] = errors[row["name"]]
        cases.append(case)
    for contestant in everyone:
        contestant.end()
    if kept:
        kept.close()
    described = {c.name: c.description for c in everyone}
    peak = "int8 products" if dtype in BLOCKS else "f32 fused multiply-adds"
    return {"dtype": dtype, "peak": peak, "contestants": described, "left_out": left_out, "cases": cases}


def give_up_on(name: str, why: Failure, left_out: dict[str, str], first: str) -> None:
    say(f"left out: {why}")
    if name == first:
        raise SystemExit(1)
    left_out[name] = str(why)


def check(contestant: Contestant, tokens: int, expected: dict[int, np.ndarray], dtype: str) -> float:
    """The greatest relative error of all variants."""
    limit = TOLERANCE[activations_of(contestant.name, dtype)]
    errors = []
    for variant, y in expected.items():
        found = output(contestant, tokens, variant, y.shape[1])
        errors.append(float(np.linalg.norm(found - y) / np.linalg.norm(y)))
        if not errors[-1] <= limit:
            raise Failure(f"{contestant.name}: error {errors[-1]:.1e} with {tokens} tokens, at most {limit} expected")
    return max(errors)


def touched(directory: Path, tokens: int) -> int:
    """Experts that have a token: what must be read."""
    _, _, case = next(layer_files.read_cases(directory / "inputs.safetensors", [tokens]))
    return len(np.unique(case.experts))


def measure(
    tokens: int, experts: int, dtype: str, shape: Shape, contestants: list[Contestant], args: argparse.Namespace
) -> dict[str, Any]:
    """The least disturbed of at most three times as many rounds as are asked for."""
    needed = experts * shape.expert_bytes(dtype)
    calls = -(-(512 << 20) // needed)

    def turn(before: list[Round]) -> Round:
        slow = {name for r in before for name, s in r["seconds"].items() if s > 0.5}
        return play(len(before), tokens, calls, contestants, slow)

    rounds = quiet_rounds(turn, args.rounds, args.seconds)
    rows = [
        {"name": c.name, "activations": activations_of(c.name, dtype), "seconds": [r["seconds"][c.name] for r in rounds]}
        for c in contestants
    ]
    say(f"  {tokens} tokens: " + ", ".join(f"{r['name']} {np.median(r['seconds']) * 1e3:.2f} ms" for r in rows))
    return {
        "tokens": tokens,
        "flops": shape.flops(tokens),
        "bytes": needed,
        "limits": [r["limits"] for r in rounds],
        "others": [r["others"] for r in rounds],
        "rows": rows,
    }


def play(turn: int, tokens: int, calls: int, contestants: list[Contestant], slow: set[str]) -> Round:
    """A round: this machine's limits, then each contestant's turn, which begins with a call that is not timed, but for the
    slow ones, so that threads are awake and spread over the processors. Who begins, changes."""
    watch = Watch(contestants)
    limits = [float(word) for word in contestants[0].ask("limits").split()]
    seconds = {}
    for i in range(len(contestants)):
        contestant = contestants[(turn + i) % len(contestants)]
        # Threads that the one before left spinning go to sleep meanwhile.
        time.sleep(0.02)
        if contestant.name not in slow:
            contestant.ask("run", tokens, turn * calls + calls, 1)
        seconds[contestant.name] = float(contestant.ask("run", tokens, turn * calls, calls))
    return {"limits": limits, "seconds": seconds, "others": watch.others()}


def main() -> None:
    args = arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    shape = Shape(args.dim, args.hidden, args.experts, args.chosen)
    results: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": machine(args.threads),
        "command": shlex.join(["benches/peers/run.sh", *sys.argv[1:]]),
        "shape": vars(shape),
        "runs": [],
    }
    for dtype in args.dtype:
        results["runs"].append(compare(dtype, shape, args))
        (args.data / "results.json").write_text(json.dumps(results, indent=1))
    print(report.table(results))
    args.chart.write_text(report.chart(results))


if __name__ == "__main__":
    main()
