"""Many runs in one table: ``python -m lav2.report outputs/demo/sweep_…``; ``--help`` says more."""

import csv
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lav2.cli import clear_errors
from lav2.errors import UserError
from lav2.evaluation.report import Report
from lav2.evaluation.run_charts import charts, save_png, svg
from lav2.evaluation.runs import Group, Run, find_runs, group_runs, outcome_names, show, unlike, varied

SCORES_SHOWN = 6  # of each evaluation, unless --show says which


def parser() -> ArgumentParser:
    made = ArgumentParser("python -m lav2.report", description="What was varied against what came out, over many runs.")
    made.add_argument("folders", nargs="+", help="run folders, or folders above some, such as a sweep's")
    made.add_argument("--to", help="where runs.csv, summary.csv, report.html and report.png go; default: FOLDER/report")
    made.add_argument("--by", nargs="+", metavar="SETTING", help="what to join runs by; default: all that was varied")
    made.add_argument("--show", nargs="+", metavar="OUTCOME", help="what to print and to plot; the files hold all")
    return made


def write_report(
    folders: Sequence[str | Path],
    to: str | Path,
    show_only: Sequence[str] | None = None,
    by: Sequence[str] | None = None,
) -> list[Group]:
    """Read the runs in ``folders``, print their table, and write it to ``to``: CSV, a page, and a picture of the plots.

    ``runs.csv`` has a line a run, the failed ones too; ``summary.csv`` a line for each combination of varied settings,
    with mean, standard deviation and count over the seeds of every outcome. The picture needs matplotlib (the extra
    ``report``) and is left out without it.

    Raises:
        UserError: a folder is missing or holds no run, or no run has an outcome that ``show_only`` names or a setting
            of ``by``.
    """
    runs = find_runs(folders)
    settings = varied(runs) if by is None else list(by)
    groups, outcomes = group_runs(runs, settings), outcome_names(runs)
    if unknown := [name for name in settings if not any(name in run.settings for run in runs)]:
        raise UserError(f"--by {unknown[0]}: no run has this setting; among those they have: {', '.join(varied(runs))}")
    if unknown := sorted(set(show_only or ()) - set(outcomes)):
        raise UserError(f"--show {unknown[0]}: no run has it; they have {', '.join(outcomes)}")
    shown = list(show_only or headline(outcomes))
    to = Path(to)
    to.mkdir(parents=True, exist_ok=True)
    write_runs(runs, settings, outcomes, to / "runs.csv")
    write_summary(groups, settings, outcomes, to / "summary.csv")
    drawn = charts(groups, shown)
    page(runs, groups, settings, outcomes, [svg(chart) for chart in drawn]).write(to / "report.html")
    if drawn and find_spec("matplotlib"):
        save_png(drawn, to / "report.png")
    print_table(runs, groups, settings, shown)
    return groups


def headline(outcomes: Sequence[str]) -> list[str]:
    """What is printed and plotted unless told: final losses, the first scores of each evaluation, what it took."""
    kinds = by_kind(outcomes)
    if "val" in kinds:
        kinds.pop("train", None)
    return [name for kind, names in kinds.items() for name in (names[:SCORES_SHOWN] if kind else names)]


def by_kind(outcomes: Sequence[str]) -> dict[str, list[str]]:
    """The outcomes of training, of each evaluation, and without a kind, under their names' first part."""
    kinds: dict[str, list[str]] = {}
    for name in outcomes:
        kinds.setdefault(name.rpartition("/")[0], []).append(name)
    return kinds


def write_runs(runs: Sequence[Run], settings: Sequence[str], outcomes: Sequence[str], path: Path) -> None:
    write_csv(
        path,
        ["folder", "state", "reason", "seed", *settings, *outcomes],
        (
            [run.folder, run.state, run.reason, run.seed]
            + [run.settings.get(name) for name in settings]
            + [run.outcomes.get(name) for name in outcomes]
            for run in runs
        ),
    )


def write_summary(groups: Sequence[Group], settings: Sequence[str], outcomes: Sequence[str], path: Path) -> None:
    def line(group: Group):
        spreads = [group.outcomes.get(name) for name in outcomes]
        yield from (group.settings[name] for name in settings)
        yield from (len(group.counted), len(group.runs) - len(group.counted))
        for one in spreads:
            yield from (one.mean, one.std, len(one.values)) if one else (None, None, 0)

    columns = [f"{name} {what}" for name in outcomes for what in ("mean", "std", "n")]
    write_csv(path, [*settings, "runs", "not finished", *columns], map(list, map(line, groups)))


def write_csv(path: Path, header: Sequence[str], rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def page(
    runs: Sequence[Run], groups: Sequence[Group], settings: Sequence[str], outcomes: Sequence[str], plots: Sequence[str]
) -> Report:
    """The report as a page."""
    report = Report("Runs side by side", told(runs))
    if plots:
        report.charts(plots, "What was varied against what came out")
    report.table(
        [*settings, "runs", *outcomes],
        (
            [*map(show, group.settings.values()), count(group)]
            + [str(group.outcomes[name]) if name in group.outcomes else None for name in outcomes]
            for group in groups
        ),
        "Mean ± standard deviation over seeds",
    )
    lost = [[str(run.folder), run.state, run.reason] for run in runs if not run.counts]
    if lost:
        report.table(["run", "state", "reason"], lost, "Not finished")
    return report.table(
        ["run", "state", "seed", *settings, *outcomes],
        (
            [str(run.folder), run.state, show(run.seed)]
            + [show(run.settings.get(name)) for name in settings]
            + [run.outcomes.get(name) for name in outcomes]
            for run in runs
        ),
        "Every run",
    )


def told(runs: Sequence[Run]) -> str:
    lost = sum(not run.counts for run in runs)
    lines = [f"{len(runs)} runs" + (f", of which {lost} did not finish" if lost else "")]
    for name, differing in unlike(runs).items():
        lines.append(
            f"{name} was not made alike in all of them (they differ in {', '.join(differing)}): compare with care; "
            "where runs of one group differ there is no mean; evaluate them again alike"
        )
    return "; ".join(lines)


def count(group: Group) -> str:
    of = f" of {len(group.runs)}" if len(group.counted) < len(group.runs) else ""
    return f"{len(group.counted)}{of}"


def print_table(runs: Sequence[Run], groups: Sequence[Group], settings: Sequence[str], shown: Sequence[str]) -> None:
    """Tables of each kind of outcome, none wider than the terminal, and a line for each run that did not finish."""
    console = Console()
    console.print(f"{told(runs)}; mean ± standard deviation over seeds")
    varied = [[short(name, settings), *(show(group.settings[name]) for group in groups)] for name in settings]
    varied.append(["runs", *map(count, groups)])
    for kind, names in by_kind(shown).items():
        columns = [
            [name.rpartition("/")[2], *(str(group.outcomes.get(name, "–")) for group in groups)] for name in names
        ]
        alike = [column for column in columns if len(groups) > 1 and len(set(column[1:])) == 1]
        differing = [column for column in columns if column not in alike]
        for part in side_by_side(differing, console.width - sum(map(width, varied))):
            table = Table(title=kind, title_justify="left")
            for header, *_ in varied:
                table.add_column(header, overflow="fold")
            for header, *_ in part:
                table.add_column(header, no_wrap=True)
            for row in zip(*(cells for _, *cells in (*varied, *part)), strict=True):
                table.add_row(*row)
            console.print(table)
        if alike:
            same = ", ".join(f"{header} {value}" for header, value, *_ in alike)
            console.print(f"{kind or 'besides'}, the same everywhere: {same}", markup=False, soft_wrap=True)
    for run in runs:
        if not run.counts:
            console.print(
                f"{run.state}: {run.folder}" + (f": {run.reason}" if run.reason else ""), markup=False, soft_wrap=True
            )


def short(name: str, names: Sequence[str]) -> str:
    """The end of a dotted ``name`` that tells it from the other ``names``."""
    parts = name.split(".")
    ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
    return next((end for end in ends if sum(f".{one}".endswith(f".{end}") for one in names) == 1), name)


def width(column: Sequence[str]) -> int:
    return max(map(len, column)) + 3  # with its border


def side_by_side(columns: Sequence[Sequence[str]], room: int) -> list[list[Sequence[str]]]:
    """The columns in tables of at most ``room`` characters; one that is wider stands alone."""
    parts: list[list[Sequence[str]]] = []
    for column in columns:
        if parts and sum(map(width, [*parts[-1], column])) < room:
            parts[-1].append(column)
        else:
            parts.append([column])
    return parts


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, or ``arguments``; mistakes end the program as in ``train.py``."""
    with clear_errors():
        parsed = parser().parse_args(arguments)
        to = Path(parsed.to or Path(parsed.folders[0]) / "report")
        write_report(parsed.folders, to, parsed.show, parsed.by)
        print(f"runs.csv, summary.csv and report.html are in {to}")
        if not find_spec("matplotlib"):
            print('report.png needs matplotlib: pip install -e ".[report]"')


if __name__ == "__main__":
    main()
