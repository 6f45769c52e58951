"""What ``train.py`` and ``evaluate.py`` share: Hydra in front, one clear line for a user's mistake, exit code 2."""

import contextlib
import errno
import functools
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lav2.errors import UserError
from lav2.hydra_errors import CONF, one_line, reworded
from lav2.installed import fast_dtype, package_file

DISK_ERRORS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "no permission to write",
    errno.EROFS: "the disk is read-only",
}


def register_resolvers() -> None:
    """Interpolations that the configs use."""
    OmegaConf.register_new_resolver(
        "embedded", lambda name: str(Path(__file__).parent / "demo" / "weights" / name), replace=True
    )
    OmegaConf.register_new_resolver("stem", lambda path: None if path is None else Path(path).stem, replace=True)
    OmegaConf.register_new_resolver("package_file", package_file, replace=True)
    OmegaConf.register_new_resolver("fast_dtype", fast_dtype, replace=True)
    # A resumed run goes on in its own folder.
    OmegaConf.register_new_resolver(
        "run_folder", lambda resume, new: new if resume in (None, "auto") else str(resume), replace=True
    )


def run(task: Callable[[DictConfig], object], config_name: str) -> None:
    """Compose ``conf/<config_name>.yaml`` with the command line and call ``task`` with it.

    Mistakes end the program as :func:`clear_errors` says.
    """
    register_resolvers()
    quiet()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach the handlers below instead of Hydra's printer

    @functools.wraps(task)
    def started(cfg: DictConfig) -> object:
        register_resolvers()  # a launcher may have started this in a process of its own
        quiet()
        try:
            with sweep_errors() if in_sweep() else clear_errors():  # inside of Hydra, which would print more lines
                return task(cfg)
        finally:
            remove_empty(Path(HydraConfig.get().runtime.output_dir))

    with clear_errors():
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(started)()


def remove_empty(folder: Path) -> None:
    """Remove what Hydra made for a task that wrote nothing: the folder and, in the working directory, those above."""
    for place in (folder, *folder.parents):
        within = place == folder or Path.cwd() in place.parents
        try:
            if not within or place.is_symlink() or any(place.iterdir()):
                return
            place.rmdir()
        except OSError:  # it is gone, a mount point, or another process has just written into it
            return


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """End the program with one line on stderr and exit code 2 on a user's mistake or a disk that takes no more.

    Any other exception is a defect of ours and keeps its traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if (line := mistake(error)) is None:
            raise
        fail(line)


@contextlib.contextmanager
def sweep_errors() -> Iterator[None]:
    """Tell at once of a job that fails, and let the others run; when all are done Hydra raises the first error."""
    try:
        yield
    except Exception as error:
        hydra = HydraConfig.get()
        job = f"job {hydra.job.num} of the sweep ({hydra.job.override_dirname})"
        if mistake(error) is None:
            traceback.print_exc()
        print(f"{job} failed: {told(error)}", file=sys.stderr)
        raise UserError(
            f"{job} failed: {told(error)}; the others have run: python -m lav2.report {hydra.sweep.dir}"
        ) from None


def in_sweep() -> bool:
    """Whether this is a job of a Hydra sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def mistake(error: BaseException) -> str | None:
    """What a user's mistake, or a disk that takes no more, is called in one line; ``None`` for anything else."""
    if isinstance(error, UserError):
        return (
            str(error).rpartition("UserError: ")[2].strip()
        )  # from a data worker it brings that one's traceback along
    if isinstance(error, HydraException | OmegaConfBaseException):
        return reworded(error)
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        where = f" {error.filename}" if error.filename else ""
        return f"{DISK_ERRORS[error.errno]}{where}: mend it or choose another folder, then resume the run or start anew"
    return None


def told(error: BaseException) -> str:
    """Any error in one line, a defect by its kind."""
    line = mistake(error)
    return f"{type(error).__name__}: {one_line(error)}" if line is None else " ".join(line.split())


def quiet() -> None:
    """Leave out what libraries say about themselves; their warnings stay."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*treespec, LeafSpec.*", ".*exists and is not empty.*"):
        warnings.filterwarnings("ignore", message=message)


def fail(message: str) -> None:
    """Print ``message`` and leave with exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
