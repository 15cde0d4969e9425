"""Times ours and llama.cpp on one GGUF file, side by side; `file.sh` sets up what this needs."""

import argparse
import os
import shlex
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np

from rounds import Contestant, Round, Watch, machine, quiet_rounds, say

HERE = Path(__file__).resolve().parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target"))
# What is timed: a prompt whose last logits are wanted, and a token after it.
CASES = ("prompt", "token")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    option = parser.add_argument
    option("file", type=Path, help="a GGUF file that both can read")
    option("--vocabulary", type=int, default=32000, help="ids are drawn from the upper ones of so many")
    option("--prompt", type=int, default=128, help="tokens of the prompt")
    option("--decode", type=int, default=32, help="tokens after it, read one at a time")
    option("--rounds", type=int, default=5, help="rounds; disturbed ones are played again")
    option("--seconds", type=float, default=600, help="time after which three rounds are enough")
    option("--threads", type=int, default=2, help="threads of each contestant, and processors for all")
    option("--data", type=Path, default=HERE / ".data", help="where ids and logs go")
    return parser.parse_args()


def start(args: argparse.Namespace) -> list[Contestant]:
    args.data.mkdir(parents=True, exist_ok=True)
    ids = np.random.default_rng(9).integers(args.vocabulary // 2, args.vocabulary, args.prompt + args.decode, dtype=np.uint32)
    ids[0] = 1
    ids.astype("<u4").tofile(args.data / "ids")
    ours = [TARGET / "release/ours_model", args.file, args.data / "ids", str(args.prompt)]
    theirs = [sys.executable, HERE / "llama_cpp_model.py", args.file, args.data / "ids", str(args.prompt), str(args.threads)]
    commands = {"ours": [*ours, "f32"], "ours-int8-activations": [*ours, "int8"], "llama.cpp": theirs}
    return [Contestant(name, command, args.data / f"{name}.log", args.threads) for name, command in commands.items()]


def logits(contestant: Contestant, prompt: int) -> np.ndarray:
    path = contestant.log.with_suffix(".out")
    contestant.ask("logits", path)
    values = np.fromfile(path, "<f4").reshape(prompt, -1).astype(np.float64)
    path.unlink()
    return values


def play(turn: int, contestants: list[Contestant], decode: int) -> Round:
    """A turn for everybody; who begins, changes. Logits were compared before, so that memory is warm."""
    watch, seconds = Watch(contestants), {}
    for i in range(len(contestants)):
        contestant = contestants[(turn + i) % len(contestants)]
        # Threads that the one before left spinning go to sleep meanwhile.
        time.sleep(0.05)
        seconds[contestant.name] = dict(zip(CASES, map(float, contestant.ask("run", "last", decode).split())))
    others = watch.others()
    shown = ", ".join(f"{name} {s['prompt']:.3f} {s['token']:.4f} s" for name, s in seconds.items())
    say(f"  round {turn + 1}: {shown}; others {others:.0%}")
    return {"seconds": seconds, "others": others}


def main() -> None:
    args = arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    contestants = start(args)
    expected = logits(contestants[0], args.prompt)
    correlation = {c.name: float(np.corrcoef(logits(c, args.prompt).ravel(), expected.ravel())[0, 1]) for c in contestants}
    rounds = quiet_rounds(lambda before: play(len(before), contestants, args.decode), args.rounds, args.seconds)
    for contestant in contestants:
        contestant.end()
    gigabytes = args.file.stat().st_size / 1e9
    print(f"{args.file.name}, {gigabytes:.2f} GB; a prompt of {args.prompt} tokens in one pass, {args.decode} tokens one at a time.")
    print(f"{machine(args.threads)}; {date.today().isoformat()}.\n")
    print(f"```sh\n{shlex.join(['benches/peers/file.sh', *sys.argv[1:]])}\n```\n")
    print("| | prompt, tokens/s | decoding, tokens/s | time of the prompt / ours int8 | of a token / ours int8 | correlation of logits with exact |")
    print("|---|--:|--:|--:|--:|--:|")
    for contestant in contestants:
        times = {case: [r["seconds"][contestant.name][case] for r in rounds] for case in CASES}
        beside = {case: [r["seconds"]["ours-int8-activations"][case] for r in rounds] for case in CASES}
        ratios = [median(a / b for a, b in zip(times[case], beside[case])) for case in CASES]
        rates = [f"{args.prompt / median(times['prompt']):.1f}", f"{1 / median(times['token']):.2f}"]
        cells = [contestant.name, *rates, *(f"{ratio:.2f}" for ratio in ratios), f"{correlation[contestant.name]:.5f}"]
        print(f"| {' | '.join(cells)} |")
    others = " to ".join(f"{share:.0%}" for share in sorted({min(r["others"] for r in rounds), max(r["others"] for r in rounds)}))
    print(f"\n{len(rounds)} rounds, medians; other processes used {others} of the processors.")


if __name__ == "__main__":
    main()
