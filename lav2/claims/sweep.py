"""Run what is left of a plan, some runs side by side, each in a process of its own."""

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from omegaconf import OmegaConf
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lav2.claims.claim import Setting
from lav2.claims.one import forked
from lav2.claims.plan import Job, Plan
from lav2.config import build_data, construct
from lav2.errors import UserError

POLL = 0.2  # seconds between looks at the running processes

PROCESSES = multiprocessing.get_context("forkserver")  # imports take each run ten seconds; so they are made once
PROCESSES.set_forkserver_preload([forked.__module__])


def sweep(plan: Plan, setting: Setting, side_by_side: int = 2) -> list[str]:
    """Run what is not done; how each run that failed did, one line each.

    A stopped sweep goes on when it is started again: runs that are done stay, one that was training goes on from its
    newest checkpoint, one that was being measured from its journal.
    """
    left = [job for job in plan.jobs if not job.done(setting)]
    print(f"{len(plan.jobs) - len(left)} of {len(plan.jobs)} runs are done, in {setting.folder}")
    if not left:
        return []
    prepare(left, setting)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[remaining]}")
    with Progress(*columns) as progress:
        task = progress.add_task("starting", total=sum(job.weight for job in left), remaining="")
        start = time.monotonic()
        finished = 0.0

        def tell(running: Sequence[Job], ended: Job | None = None) -> None:
            nonlocal finished
            finished += ended.weight if ended else 0.0
            names = ", ".join(job.name for job in running) or "done"
            rest = (time.monotonic() - start) * (progress.tasks[0].total / finished - 1) / 60 if finished else None
            remaining = f"about {rest:.0f} minutes to go" if rest is not None else ""
            progress.update(task, completed=finished, description=names, remaining=remaining)
            if ended:
                print(f"{ended.name} ended; {remaining}", flush=True)

        return run_all(left, setting, side_by_side, tell)


def run_all(
    left: Sequence[Job],
    setting: Setting,
    side_by_side: int,
    tell: Callable[..., None],
    start: Callable[[Job, Setting], BaseProcess] | None = None,
) -> list[str]:
    """Start each job when the one it needs is trained, at most ``side_by_side`` at a time; what failed."""
    start = start or start_process
    waiting, running, failed = list(left), {}, {}
    try:
        while waiting or running:
            for job in list(waiting):
                pending = {one.folder for one in (*waiting, *running.values())}
                if job.needs in failed:
                    failed[job.folder] = f"{job.folder}: not run, for it starts from {job.needs}"
                    waiting.remove(job)
                elif len(running) < side_by_side and job.needs not in pending:
                    running[start(job, setting)] = job
                    waiting.remove(job)
            tell(list(running.values()))
            time.sleep(POLL)
            for process in [process for process in running if process.exitcode is not None]:
                job = running.pop(process)
                if process.exitcode:
                    failed[job.folder] = f"{job.folder}: {last_line(log_path(job, setting))}"
                tell(list(running.values()), job)
    finally:
        if running:
            print("stopping; the same command goes on from here", flush=True)
        for process in running:
            process.terminate()  # it leaves a checkpoint to go on from
        for process in running:
            process.join()
    return list(failed.values())


def start_process(job: Job, setting: Setting) -> BaseProcess:
    """Train and measure ``job`` in a process with one thread; what it prints goes into a file."""
    evaluations = [setting.values["evaluations"][ability] for ability in job.unmeasured(setting)]
    order = {"folder": str(job.folder), "train": list(job.overrides), "evaluations": evaluations}
    log = log_path(job, setting)
    log.parent.mkdir(parents=True, exist_ok=True)
    process = PROCESSES.Process(target=forked, args=(json.dumps(order), str(log)))
    process.start()
    return process


def prepare(jobs: Sequence[Job], setting: Setting) -> None:
    """Draw the data once, before several runs would at the same time; and see whether all can be measured.

    Raises:
        UserError: an evaluation lacks a file, which would otherwise show when the first run has been trained.
    """
    drawn = set()
    for job in jobs:
        if (key := str(job.config.data)) not in drawn:
            drawn.add(key)
            build_data(job.config).prepare_data()
    for ability in dict.fromkeys(ability for job in jobs for ability in job.abilities):
        construct("eval", OmegaConf.create(setting.evaluations[ability][1]))


def log_path(job: Job, setting: Setting) -> Path:
    return setting.folder / "logs" / f"{job.arm.name}_{job.seed}.txt"


def last_line(log: Path) -> str:
    """Why a run failed: the last thing it said."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.is_file() else []
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


def raise_failed(failed: Sequence[str], setting: Setting) -> None:
    if failed:
        lines = "\n  ".join(failed)
        raise UserError(f"{len(failed)} runs failed; what they printed is in {setting.folder / 'logs'}:\n  {lines}")
