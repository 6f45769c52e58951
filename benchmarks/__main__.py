"""``make bench``: the benchmarks, each in a process of its own; then the page of their results.

    python -m benchmarks [training generation …]

Figures are kept in ``outputs/benchmarks/<name>.json``; a benchmark whose figures are there is not run again. One that
fails loses none of the others: it is named at the end. The page is ``benchmarks/results.md`` with ``results.png``.
"""

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import FIGURES, Ratio, environment

NAMES = (  # the longest comes last
    "generation",
    "joint",
    "growth",
    "start",
    "features",
    "loading",
    "memory",
    "coco_scores",
    "training",
)
PAGE = Path("benchmarks/results.md")


def measure(name: str) -> bool:
    """Write the figures of one benchmark, unless they are all there; whether they are now."""
    file = FIGURES / f"{name}.json"
    if file.is_file() and not json.loads(file.read_text()).get("failed"):
        print(f"benchmarks.{name}: kept in {file}", flush=True)
        return True
    before, start = environment("lav2"), time.monotonic()
    print(f"benchmarks.{name} …", flush=True)
    code = f"import json; from benchmarks.{name} import run; print(json.dumps(run()))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    minutes = (time.monotonic() - start) / 60
    if done.returncode:
        print(f"benchmarks.{name} failed after {minutes:.1f} minutes", flush=True)
        return False
    figures = json.loads(done.stdout.splitlines()[-1])
    file.write_text(json.dumps({"environment": before, "minutes": minutes} | figures, indent=1) + "\n")
    print(f"benchmarks.{name}: {minutes:.1f} minutes", flush=True)
    return not figures.get("failed")


def page(found: dict[str, tuple[dict, list[Ratio]]]) -> str:
    """The results as Markdown, a table for each benchmark."""
    text = [
        "# Benchmarks\n",
        "Every figure is a ratio beside a peer, or the machine's own limit, taken in turns within one run: the median "
        "over the turns, and the least and the most. `make bench` makes this page.\n",
        "![The ratios](results.png)\n",
    ]
    for name, (figures, lines) in found.items():
        where = figures["environment"]
        machine, versions = where["machine"], where["versions"] | figures.get("versions", {})
        threads = figures.get("threads", machine["threads"])
        text.append(f"## {name}\n")
        text.append(
            f"{machine['cpu']}, {machine['cores']} cores, {threads} threads, load {machine['load'][0]:.1f} before; "
            + ", ".join(f"{package} {version}" for package, version in versions.items())
            + f"; {figures['minutes']:.1f} minutes\n"
        )
        text.append("| | beside | median | least – most | turns | target |\n| --- | --- | ---: | ---: | ---: | --- |")
        text.extend(map(row, lines))
        text.append("")
        if figures.get("failed"):
            text.append(f"Not measured, for the system ended it: {'; '.join(figures['failed'])}\n")
    return "\n".join(text)


def row(line: Ratio) -> str:
    verdict = "" if line.met is None else ", met" if line.met else ", **not met**"
    target = (
        "" if line.target is None else f"{'at most' if line.less_is_better else 'at least'} {line.target:g}{verdict}"
    )
    spread = f"{min(line.values):.2f} – {max(line.values):.2f}"
    return f"| {line.what} | {line.beside} | {line.median:.2f} | {spread} | {len(line.values)} | {target} |"


def plot(found: dict[str, tuple[dict, list[Ratio]]], file: Path) -> None:
    """Every ratio as a bar, on a logarithmic scale around 1: a panel for each benchmark, in two columns."""
    from matplotlib.figure import Figure

    counts = {name: len(lines) for name, (_, lines) in found.items()}
    columns: tuple[list[str], list[str]] = ([], [])
    before = 0
    for name, count in counts.items():
        columns[before + count / 2 > sum(counts.values()) / 2].append(name)
        before += count
    columns = [names for names in columns if names]
    heights = [[counts[name] + 3 for name in names] for names in columns]
    figure = Figure(figsize=(11 * len(columns), 0.2 * max(map(sum, heights))), layout="constrained")
    parts = figure.subfigures(1, len(columns), squeeze=False)[0]
    for part, names, ratios in zip(parts, columns, heights, strict=True):
        for axes, name in zip(part.subplots(len(names), height_ratios=ratios, squeeze=False)[:, 0], names, strict=True):
            bars(axes, found[name][1][::-1])
            axes.set_title(name, fontsize=9, fontweight="bold")
    figure.supxlabel(
        "ratio; a thick mark is the target, a thin line the spread over the turns; green: met, red: not", fontsize=9
    )
    figure.savefig(file, dpi=100)


def bars(axes, lines: list[Ratio]) -> None:
    colors = ["C0" if line.met is None else "C2" if line.met else "C3" for line in lines]
    axes.barh(range(len(lines)), [line.median - 1 for line in lines], left=1, color=colors)
    for place, line in enumerate(lines):
        axes.plot([min(line.values), max(line.values)], [place, place], color="black", linewidth=1)
        if line.target is not None:
            axes.plot([line.target] * 2, [place - 0.4, place + 0.4], color="black", linewidth=2)
    axes.set_xscale("log")
    ticks = [one for one in (0.05, 0.1, 0.2, 0.5, 0.75, 1, 1.5, 2, 5, 10, 100) if inside(axes, one)]
    axes.set_xticks(ticks, [f"{one:g}" for one in ticks], fontsize=7)
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(lines)), [f"{line.what} / {line.beside}" for line in lines], fontsize=7)
    axes.margins(y=0.01)


def inside(axes, value: float) -> bool:
    least, most = axes.get_xlim()
    return least <= value <= most


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, help=f"of {', '.join(NAMES)}")
    names = parser.parse_args().names
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"no benchmark {unknown[0]}; choose of {', '.join(NAMES)}")
    FIGURES.mkdir(parents=True, exist_ok=True)
    failed = [name for name in names if not measure(name)]
    kept = {name: json.loads(file.read_text()) for name in NAMES if (file := FIGURES / f"{name}.json").is_file()}
    found = {
        name: (figures, list(importlib.import_module(f"benchmarks.{name}").lines(figures)))
        for name, figures in kept.items()
    }
    PAGE.write_text(page(found))
    plot(found, PAGE.with_suffix(".png"))
    print(f"written: {PAGE}, {PAGE.with_suffix('.png')}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; what they said stands above")


if __name__ == "__main__":
    main()
