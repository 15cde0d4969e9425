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
from typing import IO, Any

import numpy as np

import layer_files
import report
from layer_files import Shape

HERE = Path(__file__).resolve().parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target"))
# Ours, by the type to which it rounds activations. The first is always there: it measures the machine's limits.
OURS = {"ours": "f32", "ours-bf16-activations": "bf16"}
PEERS = ["llama.cpp", "torch", "candle"]
# Relative error ‖y − ref‖ / ‖ref‖ that is let pass, by the type in which a contestant has its activations: some ten units
# in the last place, for sums of thousands of products and a result rounded once more.
TOLERANCE = {"f32": 1e-5, "f16": 3e-3, "bf16": 2e-2}
# Share of the processors that others may use in a round, beyond which it is played again. Ticks of time are as coarse.
QUIET = 0.1


def arguments() -> argparse.Namespace:
    def several(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(n) for n in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    option = parser.add_argument
    option("--dtype", type=several, default="bf16,f16,f32", help="types of the weights")
    option("--tokens", type=numbers, default="1,8,32,128,512", help="tokens in a batch")
    option("--dim", type=int, default=4096, help="width of a hidden state")
    option("--hidden", type=int, default=14336, help="hidden width of an expert")
    option("--experts", type=int, default=8, help="number of experts")
    option("--chosen", type=int, default=2, help="experts of a token")
    option("--peers", type=several, default=",".join(PEERS), help=f"of {', '.join([*PEERS, *list(OURS)[1:]])}")
    option("--rounds", type=int, default=9, help="rounds for each number of tokens; disturbed ones are played again")
    option("--seconds", type=float, default=120, help="time after which three rounds are enough")
    option("--threads", type=int, default=2, help="threads of each contestant, and processors for all")
    option("--access", choices=["map", "read"], default="map", help="weights shared, or a copy for each")
    option("--chart", type=Path, default=HERE.parents[1] / "docs/peers.svg", help="where the chart goes")
    option("--data", type=Path, default=HERE / ".data", help="where weights, results and logs go")
    return parser.parse_args()


class Failure(Exception):
    """Why a contestant could not."""


class Contestant:
    def __init__(self, name: str, directory: Path, args: argparse.Namespace):
        self.name = name
        self.log = directory / f"{name}.log"
        threads = str(args.threads)
        ours = [TARGET / "release/ours", directory, args.access]
        commands: dict[str, list] = {name: [*ours, activations] for name, activations in OURS.items()} | {
            "candle": [TARGET / "native/release/candle", directory],
            "torch": [sys.executable, HERE / "torch_layer.py", directory, args.access, threads],
            "llama.cpp": [sys.executable, HERE / "llama_cpp_layer.py", directory, args.access, threads],
        }
        settings = {"RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        settings |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                commands[name],
                env=os.environ | settings,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )
        self.description = self.answer().removeprefix("ready ")

    def activations(self, dtype: str) -> str:
        """The type of activations that enter a product with weights of type `dtype`."""
        return OURS.get(self.name, dtype)

    def answer(self) -> str:
        line = pipe(self.process.stdout).readline().strip()
        if not line:
            last = self.log.read_text().strip().rpartition("\n")[2]
            raise Failure(f"{self.name} ended with {self.process.wait()}: {last}")
        if line.startswith("error: "):
            raise Failure(f"{self.name}: {line}")
        return line

    def ask(self, *words: object) -> str:
        pipe(self.process.stdin).write(" ".join(map(str, words)) + "\n")
        return self.answer()

    def output(self, tokens: int, variant: int, dim: int) -> np.ndarray:
        path = self.log.with_suffix(".out")
        self.ask("output", tokens, variant, path)
        y = np.fromfile(path, "<f4").reshape(tokens, dim)
        path.unlink()
        return y

    def end(self) -> None:
        pipe(self.process.stdin).close()
        self.process.wait()


def pipe(end: IO[str] | None) -> IO[str]:
    assert end is not None
    return end


def compare(dtype: str, shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one type of weights: who took part, and the samples for each number of tokens."""
    directory = args.data / f"{shape.dim}x{shape.hidden}x{shape.experts}-{dtype}"
    say(f"{directory.name}: weights and reference")
    layer_files.write_weights(directory / "model.safetensors", shape, dtype)
    kept = layer_files.keep_in_memory(directory / "model.safetensors")
    layer_files.write_inputs(directory / "inputs.safetensors", shape, args.tokens)
    expected = layer_files.reference(directory, args.tokens)

    contestants: list[Contestant] = []
    left_out: dict[str, str] = {}
    for name in ["ours", *args.peers]:
        try:
            contestants.append(Contestant(name, directory, args))
        except Failure as failure:
            give_up_on(name, failure, left_out)
    everyone = list(contestants)
    cases = []
    for tokens in args.tokens:
        variants = {variant: y for (count, variant), y in expected.items() if count == tokens}
        errors: dict[str, float] = {}
        for contestant in list(contestants):
            try:
                errors[contestant.name] = check(contestant, tokens, variants, dtype)
            except Failure as failure:
                give_up_on(contestant.name, failure, left_out)
                contestants.remove(contestant)
        case = measure(tokens, touched(directory, tokens), dtype, shape, contestants, args)
        for row in case["rows"]:
            row["error"] = errors[row["name"]]
        cases.append(case)
    for contestant in everyone:
        contestant.end()
    kept.close()
    described = {c.name: c.description for c in everyone}
    return {"dtype": dtype, "contestants": described, "left_out": left_out, "cases": cases}


def give_up_on(name: str, why: Failure, left_out: dict[str, str]) -> None:
    say(f"left out: {why}")
    if name == "ours":
        raise SystemExit(1)
    left_out[name] = str(why)


def check(contestant: Contestant, tokens: int, expected: dict[int, np.ndarray], dtype: str) -> float:
    """The greatest relative error of all variants."""
    limit = TOLERANCE[contestant.activations(dtype)]
    errors = []
    for variant, y in expected.items():
        found = contestant.output(tokens, variant, y.shape[1])
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
    needed = experts * shape.expert_elements * layer_files.BYTES[dtype]
    calls = -(-(512 << 20) // needed)
    rounds: list[dict[str, Any]] = []
    begun = time.monotonic()
    while sum(r["others"] <= QUIET for r in rounds) < args.rounds and len(rounds) < 3 * args.rounds:
        slow = {name for r in rounds for name, s in r["seconds"].items() if s > 0.5}
        rounds.append(play(len(rounds), tokens, calls, contestants, slow))
        if len(rounds) >= 3 and time.monotonic() - begun > args.seconds:
            break
    rounds = sorted(rounds, key=lambda r: r["others"])[: args.rounds]
    rows = [
        {"name": c.name, "activations": c.activations(dtype), "seconds": [r["seconds"][c.name] for r in rounds]}
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


def play(turn: int, tokens: int, calls: int, contestants: list[Contestant], slow: set[str]) -> dict[str, Any]:
    """A round: this machine's limits, then each contestant's turn, which begins with a call that is not timed, but for the
    slow ones, so that threads are awake and spread over the processors. Who begins, changes."""
    pids = [os.getpid(), *(c.process.pid for c in contestants)]
    begun, busy, ours = time.monotonic(), processors_busy(), sum(map(processor_time, pids))
    limits = [float(word) for word in contestants[0].ask("limits").split()]
    seconds = {}
    for i in range(len(contestants)):
        contestant = contestants[(turn + i) % len(contestants)]
        # Threads that the one before left spinning go to sleep meanwhile.
        time.sleep(0.02)
        if contestant.name not in slow:
            contestant.ask("run", tokens, turn * calls + calls, 1)
        seconds[contestant.name] = float(contestant.ask("run", tokens, turn * calls, calls))
    others = processors_busy() - busy - (sum(map(processor_time, pids)) - ours)
    available = (time.monotonic() - begun) * len(os.sched_getaffinity(0))
    return {"limits": limits, "seconds": seconds, "others": max(0.0, others / available)}


def processors_busy() -> float:
    """Seconds for which the processors of this comparison have been busy, or taken away by a hypervisor."""
    names = {f"cpu{n}" for n in os.sched_getaffinity(0)}
    with open("/proc/stat") as file:
        lines = [line.split() for line in file]
    # User, nice, system; after idle and waiting: interrupts, soft interrupts, stolen.
    ticks = sum(int(n) for name, *times in lines if name in names for n in times[:3] + times[5:8])
    return ticks / os.sysconf("SC_CLK_TCK")


def processor_time(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine(threads: int) -> str:
    with open("/proc/cpuinfo") as file:
        lines = file.read().split("\n\n")[0].splitlines()
    info = {key.strip(): value.strip() for key, value in (line.split(":", 1) for line in lines)}
    known = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16"]
    has = [name for name in known if name in info.get("flags", "").split()]
    family = f"family {info.get('cpu family')} model {info.get('model')}"
    return f"{info.get('model name', platform.processor())}, {family} ({', '.join(has)}), {threads} threads"


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
