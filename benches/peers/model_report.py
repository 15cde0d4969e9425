"""The tables of a comparison of whole models. `model_report.py RESULTS.json` makes them anew."""

import json
import sys
from pathlib import Path
from statistics import median

from model_files import Geometry
from report import spread

# What is timed, and in which unit it is shown.
CASES = {"all": ("prompt, all logits", 1, "s"), "last": ("prompt, last logits", 1, "s"), "token": ("token", 1e3, "ms")}


def table(results: dict) -> str:
    geometry = Geometry(**results["geometry"])
    prompt, rounds = results["prompt"], results["rounds"]
    out = [
        f"{geometry.layers} layers of D {geometry.dim}, H {geometry.hidden}, {geometry.experts} experts of which "
        f"{geometry.chosen} work on a token; a prompt of {prompt} tokens in one pass, then {results['decode']} tokens one at a time.",
        f"{results['machine']}; {results['date']}.",
        "",
        "```sh",
        results["command"],
        "```",
        "",
    ]
    out += [f"- {name}: {what}" for name, what in results["contestants"].items()]
    out += [f"- left out: {why}" for why in results["left_out"].values()]
    out += [
        "",
        "| | prompt, all logits | prompt, last logits | decoding | correlation of logits | their error | same token |",
        "|---|---|---|---|--:|--:|--:|",
    ]
    for name in results["contestants"]:
        seconds = {case: median(r["seconds"][name][case] for r in rounds) for case in CASES}
        agrees = results["agreement"][name]
        rates = [
            f"{geometry.flops_of_prompt(prompt, logits) / seconds[case] / 1e9:.0f} GFLOP/s"
            for case, logits in [("all", prompt), ("last", 1)]
        ]
        cells = [
            name,
            f"{prompt / seconds['all']:.1f} tokens/s, {rates[0]}",
            f"{prompt / seconds['last']:.1f} tokens/s, {rates[1]}",
            f"{1 / seconds['token']:.2f} tokens/s",
            f"{agrees['correlation']:.5f}",
            f"{agrees['error']:.0e}",
            f"{agrees['same_token']:.1%}",
        ]
        out.append(f"| {' | '.join(cells)} |")
    out += [
        "",
        "| | | median (least to most) | time / ours, median of the rounds (least to most) |",
        "|---|---|---|---|",
    ]
    for case, (what, scale, unit) in CASES.items():
        for name in results["contestants"]:
            times = [scale * r["seconds"][name][case] for r in rounds]
            ratios = [r["seconds"][name][case] / r["seconds"]["ours"][case] for r in rounds]
            cells = [
                what,
                name,
                f"{median(times):.4g} {unit} ({min(times):.4g} to {max(times):.4g})",
                f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            ]
            out.append(f"| {' | '.join(cells)} |")
    peaks, reads = ([f"{r['limits'][i] / 1e9:.0f}" for r in rounds] for i in (0, 1))
    others = [f"{r['others'] * 100:.0f}" for r in rounds]
    out += [
        "",
        f"{len(rounds)} rounds. Limits: {spread(peaks)} GFLOP/s of f32 fused multiply-adds, {spread(reads)} GB/s read.",
        f"Other processes used {spread(others)} % of the processors.",
    ]
    return "\n".join(out)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
