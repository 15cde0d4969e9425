"""Times whole models, Mixtral's width with few layers, in ours and in llama.cpp, side by side; `model.sh` sets up what this needs."""

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
import model_files
import model_report
from model_files import Geometry
from rounds import Contestant, Failure, Round, Watch, machine, quiet_rounds, say

HERE = Path(__file__).resolve().parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target"))
# Ours, by the type to which it rounds activations. The first is always there: it measures the machine's limits, and logits
# are compared with its own.
OURS = {"ours": "f32", "ours-bf16-activations": "bf16"}
# Least correlation of logits with those of exact products that is let pass, by the type that weights or activations have.
# A token of which a rounding changes an expert has quite other logits, and there are some in every prompt.
CORRELATION = {"f32": 0.9999, "f16": 0.99, "bf16": 0.99}
QUANTISED = 0.8


def arguments() -> argparse.Namespace:
    def several(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    types = [*model_files.CONVERTED, *model_files.QUANTISED]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    option = parser.add_argument
    option("--types", type=several, default="bf16", help=f"llama.cpp's types of weights, of {', '.join(types)}; ours are bf16")
    option("--ours", type=several, default=",".join(list(OURS)[1:]), help=f"beside ours, of {', '.join(list(OURS)[1:])}")
    option("--prompt", type=int, default=512, help="tokens of the prompt")
    option("--decode", type=int, default=32, help="tokens after it, read one at a time")
    option("--layers", type=int, default=2, help="layers")
    option("--dim", type=int, default=4096, help="width of a hidden state, a multiple of 512")
    option("--hidden", type=int, default=14336, help="hidden width of an expert, a multiple of 256")
    option("--experts", type=int, default=8, help="number of experts")
    option("--chosen", type=int, default=2, help="experts of a token")
    option("--rounds", type=int, default=7, help="rounds; disturbed ones are played again")
    option("--seconds", type=float, default=900, help="time after which three rounds are enough")
    option("--threads", type=int, default=2, help="threads of each contestant, and processors for all")
    option("--data", type=Path, default=HERE / ".data", help="where models, results and logs go")
    return parser.parse_args()


def start_ours(name: str, directory: Path, args: argparse.Namespace) -> Contestant:
    command = [TARGET / "release/ours_model", directory, directory / "ids", str(args.prompt), OURS[name]]
    return Contestant(name, command, directory / f"{name}.log", args.threads)


def start_llama_cpp(type: str, directory: Path, args: argparse.Namespace) -> Contestant:
    path = model_files.write_gguf(directory, type)
    command = [sys.executable, HERE / "llama_cpp_model.py", path, directory / "ids", str(args.prompt), str(args.threads)]
    return Contestant(f"llama.cpp {type}", command, directory / f"llama.cpp-{type}.log", args.threads)


def least_correlation(name: str) -> float:
    kind = OURS.get(name) or name.removeprefix("llama.cpp ")
    return CORRELATION.get(kind, QUANTISED)


def logits(contestant: Contestant, prompt: int) -> np.ndarray:
    path = contestant.log.with_suffix(".out")
    contestant.ask("logits", path)
    values = np.fromfile(path, "<f4").reshape(prompt, model_files.VOCABULARY)
    path.unlink()
    return values.astype(np.float64)


def agreement(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """With the logits of ours in f32: correlation of all, median over the tokens of ‖y − ref‖ / ‖ref‖, and how often the same
    token is the most probable."""
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return {
        "correlation": float(np.corrcoef(found.ravel(), expected.ravel())[0, 1]),
        "error": float(np.median(errors)),
        "same_token": float(np.mean(found.argmax(axis=1) == expected.argmax(axis=1))),
    }


def compare(geometry: Geometry, args: argparse.Namespace) -> dict[str, Any]:
    """Who took part, how far their logits agree, and the samples."""
    directory = args.data / f"{geometry.layers}x{geometry.dim}x{geometry.hidden}x{geometry.experts}"
    say(f"{directory.name}: weights")
    model_files.write_model(directory, geometry)
    model_files.write_ids(directory / "ids", args.prompt + args.decode)
    kept = layer_files.keep_in_memory(directory / "model.safetensors")

    contestants = [start_ours("ours", directory, args)]
    left_out: dict[str, str] = {}
    expected = logits(contestants[0], args.prompt)
    agreements = {"ours": agreement(expected, expected)}
    others = [(start_ours, name) for name in args.ours] + [(start_llama_cpp, type) for type in args.types]
    for start, name in others:
        try:
            contestant = start(name, directory, args)
            agrees = agreement(logits(contestant, args.prompt), expected)
            say(f"{contestant.name}: correlation of logits {agrees['correlation']:.6f}, error {agrees['error']:.1e}")
            if not agrees["correlation"] >= least_correlation(contestant.name):
                raise Failure(f"{contestant.name}: correlation of logits {agrees['correlation']:.4f}")
            agreements[contestant.name] = agrees
            contestants.append(contestant)
        except Failure as failure:
            say(f"left out: {failure}")
            left_out[name] = str(failure)
    rounds = quiet_rounds(lambda before: play(len(before), contestants, args), args.rounds, args.seconds)
    for contestant in contestants:
        contestant.end()
    kept.close()
    return {
        "contestants": {c.name: c.description for c in contestants},
        "left_out": left_out,
        "agreement": agreements,
        "rounds": rounds,
    }


def play(turn: int, contestants: list[Contestant], args: argparse.Namespace) -> Round:
    """A round: this machine's limits, then each contestant's turn with the last logits, with those of the next tokens, and with
    all. Who begins, changes. Logits were compared before, so that memory is warm."""
    watch = Watch(contestants)
    limits = [float(word) for word in contestants[0].ask("limits").split()]
    seconds: dict[str, dict[str, float]] = {}
    for i in range(len(contestants)):
        contestant = contestants[(turn + i) % len(contestants)]
        # Threads that the one before left spinning go to sleep meanwhile.
        time.sleep(0.05)
        last, token = map(float, contestant.ask("run", "last", args.decode).split())
        all_logits, _ = map(float, contestant.ask("run", "all", 0).split())
        seconds[contestant.name] = {"all": all_logits, "last": last, "token": token}
    shown = ", ".join(f"{name} {s['all']:.2f} {s['last']:.2f} {s['token']:.4f} s" for name, s in seconds.items())
    others = watch.others()
    say(f"  round {turn + 1}: {shown}; others {others:.0%}")
    return {"limits": limits, "seconds": seconds, "others": others}


def main() -> None:
    args = arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    geometry = Geometry(args.layers, args.dim, args.hidden, args.experts, args.chosen)
    results = {
        "date": date.today().isoformat(),
        "machine": machine(args.threads),
        "command": shlex.join(["benches/peers/model.sh", *sys.argv[1:]]),
        "geometry": vars(geometry),
        "prompt": args.prompt,
        "decode": args.decode,
        **compare(geometry, args),
    }
    (args.data / "model-results.json").write_text(json.dumps(results, indent=1))
    print(model_report.table(results))


if __name__ == "__main__":
    main()
