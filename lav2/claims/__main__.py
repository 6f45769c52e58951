"""``make claims``: run the arms that the papers' claims need, and write ``docs/claims.md``; ``--help`` says more."""

import signal
import sys
from argparse import ArgumentParser

from hydra import initialize_config_dir

from lav2.claims.claim import Setting, read_claims
from lav2.claims.page import write_page
from lav2.claims.plan import make_plan
from lav2.claims.plots import can_draw
from lav2.claims.results import Results
from lav2.claims.sweep import raise_failed, sweep
from lav2.cli import CONF, clear_errors, quiet, register_resolvers


def parser() -> ArgumentParser:
    made = ArgumentParser("python -m lav2.claims", description="The papers' claims, run and judged.")
    made.add_argument("overrides", nargs="*", help="for every arm, as for train.py: claims=7b llama.path=… …")
    made.add_argument("--full", action="store_true", help="the whole grid, every arm in every seed: a night")
    made.add_argument("--only", default="", metavar="CLAIM,…", help="these claims, by their files' names")
    made.add_argument("--page", action="store_true", help="run nothing, write the page of what is there")
    made.add_argument("--plan", action="store_true", help="run nothing, print the runs and whether they are done")
    made.add_argument("--side-by-side", type=int, default=2, metavar="N", help="so many runs at a time (default: 2)")
    return made


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, or ``arguments``; mistakes end the program as in ``train.py``."""
    register_resolvers()
    quiet()
    parsed = parser().parse_args(arguments)
    with clear_errors(), initialize_config_dir(str(CONF), version_base="1.3"):
        setting = Setting(parsed.overrides)
        claims = read_claims(setting, parsed.full, parsed.only.split(",") if parsed.only else ())
        plan = make_plan(claims, setting)
        if parsed.plan:
            plan.show(claims, setting)
            return
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the runs are ended too
        failed = [] if parsed.page else sweep(plan, setting, parsed.side_by_side)
        results = Results(plan, setting)
        whole = not parsed.only and not results.missing
        page = write_page(claims, results, setting.page if whole else setting.folder / setting.page.name)
        if results.left_out:
            print(f"left out: {'; '.join(f'{job} ({reason})' for job, reason in results.left_out.items())}")
        print(f"the verdicts are in {page}")
        if not whole:
            print(f"{setting.page} stays as it was: it is written of all claims together, when no run is missing")
        if not can_draw():
            print('its plots need matplotlib: pip install -e ".[report]"')
        raise_failed(failed, setting)


if __name__ == "__main__":
    main()
