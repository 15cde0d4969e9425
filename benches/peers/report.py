"""The table and the chart of a comparison's results. `report.py RESULTS.json CHART.svg` makes both anew."""

import json
import sys
from html import escape
from pathlib import Path
from statistics import median

# Middling colours, legible on white and on black: a picture does not know the theme of the page it is in.
INK, FAINT = "#7d8590", "#7d859055"
COLOURS = {
    "ours": "#2f81f7",
    "ours-bf16-activations": "#8957e5",
    "ours-int8-activations": "#d4619f",
    "llama.cpp": "#2da44e",
    "torch": "#e5534b",
    "candle": "#bf8700",
}


def share(case: dict, row: dict) -> float:
    """Least time in which this machine could read the weights and do the operations, over the time taken; by round, the median."""
    rounds = zip(case["limits"], row["seconds"])
    return median(max(case["flops"] / peak, case["bytes"] / read) / taken for (peak, read), taken in rounds)


def table(results: dict) -> str:
    shape = results["shape"]
    out = [
        f"D {shape['dim']}, H {shape['hidden']}, {shape['experts']} experts of which {shape['chosen']} work on a token.",
        f"{results['machine']}; {results['date']}.",
        "",
        "```sh",
        results["command"],
        "```",
    ]
    for run in results["runs"]:
        out += ["", f"### {run['dtype']} weights", ""]
        out += [f"- {name}: {what}" for name, what in run["contestants"].items()]
        out += [f"- left out: {why}" for why in run["left_out"].values()]
        out += ["", *summary(run)]
        out += [
            "",
            "| tokens | | median (least to most) | GFLOP/s | GB/s | of the limit | time / ours | error |",
            "|--:|---|---|--:|--:|--:|--:|--:|",
        ]
        for case in run["cases"]:
            out += [line(case, row) for row in case["rows"]]
        limits = [limit for case in run["cases"] for limit in case["limits"]]
        peaks, reads = ([f"{limit[i] / 1e9:.0f}" for limit in limits] for i in (0, 1))
        others = max(median(case["others"]) for case in run["cases"])
        out += [
            "",
            f"Limits: {spread(peaks)} GFLOP/s of {run.get('peak', 'f32 fused multiply-adds')}, {spread(reads)} GB/s read.",
            f"Other processes used up to {others:.0%} of the processors (by number of tokens, median).",
        ]
    return "\n".join(out)


def summary(run: dict) -> list[str]:
    """A line for each number of tokens, a column for each contestant; the fastest is bold."""
    names = [row["name"] for row in run["cases"][0]["rows"]]
    out = ["| tokens | " + " | ".join(names) + " |", "|--:|" + "---|" * len(names)]
    for case in run["cases"]:
        fastest = min(median(row["seconds"]) for row in case["rows"])
        cells = []
        for row in case["rows"]:
            taken = median(row["seconds"])
            # Few tokens are a matter of reading, many of computing.
            rate = f"{case['bytes'] / taken / 1e9:.1f} GB/s" if case["tokens"] < 32 else f"{case['flops'] / taken / 1e9:.0f} GFLOP/s"
            cell = f"{taken * 1e3:.4g} ms, {rate}, {share(case, row):.0%}"
            cells.append(f"**{cell}**" if taken == fastest else cell)
        out.append(f"| {case['tokens']} | " + " | ".join(cells) + " |")
    return out


def line(case: dict, row: dict) -> str:
    times = row["seconds"]
    taken = median(times)
    ours = case["rows"][0]["seconds"]
    cells = [
        str(case["tokens"]),
        row["name"] if row["activations"] == "f32" else f"{row['name']}, {row['activations']} activations",
        f"{taken * 1e3:.4g} ms ({min(times) * 1e3:.4g} to {max(times) * 1e3:.4g})",
        f"{case['flops'] / taken / 1e9:.0f}",
        f"{case['bytes'] / taken / 1e9:.1f}",
        f"{share(case, row):.0%}",
        f"{median(theirs / mine for theirs, mine in zip(times, ours)):.2f}",
        f"{row['error']:.0e}",
    ]
    return f"| {' | '.join(cells)} |"


def spread(values: list[str]) -> str:
    low, high = min(values, key=float), max(values, key=float)
    return low if low == high else f"{low} to {high}"


def chart(results: dict) -> str:
    """Bars grouped by the number of tokens, a panel for each type of weights."""
    width, left, top, height, gap = 860, 56, 70, 170, 62
    runs, shape = results["runs"], results["shape"]
    names = list(dict.fromkeys(name for run in runs for name in run["contestants"]))
    highest = max((share(case, row) for run in runs for case in run["cases"] for row in case["rows"]), default=1)
    ceiling = max(1.2, -(-highest // 0.2) * 0.2)
    title = (
        f"Experts of a Mixtral layer, D {shape['dim']}, H {shape['hidden']}, "
        f"{shape['chosen']} of {shape['experts']}: share of the machine's limit"
    )
    parts = [text(left, 20, title, size=15, weight=600)]
    x = left
    for name in names:
        parts.append(f'<rect x="{x}" y="34" width="11" height="11" rx="2" fill="{COLOURS[name]}"/>')
        parts.append(text(x + 16, 44, name))
        x += 34 + 7 * len(name)
    for i, run in enumerate(runs):
        base = top + i * (height + gap) + height
        parts += panel(run, names, left, base, width - left - 12, height, ceiling)
    bottom = top + len(runs) * (height + gap)
    notes = [
        "100 %: the weights needed read once, as fast as a plain read, or the peak of f32 fused multiply-adds, whichever takes longer.",
        *(["With weights in blocks the peak is that of int8 products."] if any("int8" in run.get("peak", "") for run in runs) else []),
        "Ours keeps activations in f32 unless its name says otherwise; the others round them to the type of the weights, or to int8.",
        f"{results['machine']}; {results['date']}.",
    ]
    parts += [text(left, bottom + 16 * i, note, size=11) for i, note in enumerate(notes)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 16 * len(notes) - 4}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">\n<title>{escape(title)}</title>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def panel(
    run: dict, names: list[str], left: float, base: float, width: float, height: float, ceiling: float
) -> list[str]:
    parts = [text(left, base - height + 2, f"{run['dtype']} weights", weight=600)]
    height -= 10
    for percent in range(0, int(ceiling * 100) + 1, 50):
        y = base - height * percent / 100 / ceiling
        stroke = INK if percent in (0, 100) else FAINT
        dashes = ' stroke-dasharray="5 4"' if percent == 100 else ""
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="{stroke}"{dashes}/>')
        parts.append(text(left - 6, y + 4, f"{percent} %", anchor="end"))
    group = width / len(run["cases"])
    bar = min(30.0, 0.86 * group / len(names))
    for g, case in enumerate(run["cases"]):
        middle = left + group * (g + 0.5)
        parts.append(text(middle, base + 16, f"{case['tokens']} token{'s' * (case['tokens'] > 1)}", anchor="middle"))
        x = middle - bar * len(case["rows"]) / 2
        for row in case["rows"]:
            reached = share(case, row)
            tall = height * reached / ceiling
            label = f"{row['name']}: {reached:.0%}, {median(row['seconds']) * 1e3:.4g} ms"
            parts.append(
                f'<rect x="{x + 1:.1f}" y="{base - tall:.1f}" width="{bar - 2:.1f}" height="{tall:.1f}" '
                f'fill="{COLOURS[row["name"]]}"><title>{escape(label)}</title></rect>'
            )
            within = tall > 16
            y, colour = (base - tall + 12, "#fff") if within else (base - tall - 4, INK)
            parts.append(text(x + bar / 2, y, f"{reached * 100:.0f}", size=10, anchor="middle", colour=colour))
            x += bar
    return parts


def text(
    x: float, y: float, words: str, size: int = 12, weight: int = 400, anchor: str = "start", colour: str = INK
) -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


if __name__ == "__main__":
    kept = json.loads(Path(sys.argv[1]).read_text())
    print(table(kept))
    Path(sys.argv[2]).write_text(chart(kept))
