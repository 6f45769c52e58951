"""Hydra's sweeps under each launcher: a folder a job, and a job that fails leaves the others and the table whole."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lav2 import report
from lav2.cli import CONF, register_resolvers
from lav2.config import problems
from tests.training.small import settings
from tests.training.test_logging import written

ROOT = Path(__file__).parents[2]


def sweep(folder: Path, *overrides: str, script: str | Path = "train.py") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, script, "-m", *overrides, f"hydra.sweep.dir={folder}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"},
    )


def table(folder: Path) -> list[dict[str, str]]:
    report.main([str(folder)])
    with (folder / "report" / "runs.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_of_the_basic_launcher(world, tmp_path):
    """The job that fails is in the middle; the others are runs of their own in wandb too, grouped and tagged."""
    short = ["trainer.max_steps=2", "trainer.limit_val_batches=0"]
    varied = ("adapter.prompt_layers=1,99,2", "seed=7")
    done = sweep(tmp_path, "experiment=demo", *settings(world), *short, *varied, "logger=wandb")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    said = done.stderr.splitlines()
    assert "job 1 of the sweep (" in said[-1] and f"python -m lav2.report {tmp_path}" in said[-1]
    rows = table(tmp_path)
    assert [row["adapter.prompt_layers"] for row in rows] == ["1", "99", "2"]
    assert [row["state"] for row in rows] == ["finished", "failed", "finished"]
    assert "prompt_layers" in rows[1]["reason"]
    for job in (0, 2):
        stored = OmegaConf.load(tmp_path / str(job) / "config.yaml")
        assert stored.adapter.prompt_layers == int(rows[job]["adapter.prompt_layers"])
        assert (tmp_path / str(job) / "adapter" / "adapter_model.safetensors").is_file()
        assert float(rows[job]["seconds"]) > 0 and 100 < float(rows[job]["peak_memory_mb"]) < 20_000
        assert float(rows[job]["train/caption_loss"]) > 0
        (tracked,) = (record.run for record in written(tmp_path / str(job)) if record.HasField("run"))
        assert tracked.run_group == tmp_path.name and list(tracked.tags) == [f"adapter.prompt_layers={job or 1}"]


LIGHT = """
import os
from pathlib import Path
from hydra.core.hydra_config import HydraConfig
from lav2.cli import run
from lav2.errors import UserError

def main(cfg):
    if cfg.seed == 1:
        raise UserError("seed 1 is broken")
    Path(HydraConfig.get().runtime.output_dir, "done").write_text(f"{os.getpid()} {cfg.llama.path}")

if __name__ == "__main__":
    run(main, "train")
"""


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_sweep_of_several_processes(tmp_path, launcher):
    """The command line of ``train.py`` with a light task: what a job is started with reaches its process."""
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher", reason="needs the extra sweeps")
    (tmp_path / "light.py").write_text(LIGHT)
    done = sweep(tmp_path / "sweep", "seed=0,1,2", f"hydra/launcher={launcher}", script=tmp_path / "light.py")
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "job 1 of the sweep (seed=1) failed: seed 1 is broken; the others" in said
    written = [(tmp_path / "sweep" / job / "done").read_text().split() for job in ("0", "2")]
    assert all(path.endswith("lav2/demo/weights/llama") for _, path in written)
    assert not (tmp_path / "sweep" / "1").exists()  # it wrote nothing


@pytest.mark.slow
def test_runs_of_several_processes_at_once(world, tmp_path):
    """In the folder that a sweep has by default; of two runs of joblib's, one fails."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra sweeps")
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "train.py", "-m", "experiment=demo", *settings(world), "trainer.max_steps=2"),
            *("trainer.limit_val_batches=0", "adapter.prompt_layers=99,2", "hydra/launcher=joblib"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2 and "job 0 of the sweep (" in done.stderr.splitlines()[-1], done.stderr
    (folder,) = (tmp_path / "outputs" / "demo").glob("sweep_*")
    rows = table(folder)
    assert [(row["adapter.prompt_layers"], row["state"]) for row in rows] == [("99", "failed"), ("2", "finished")]
    assert "prompt_layers" in rows[0]["reason"] and float(rows[1]["train/instruction_loss"]) > 0
    assert (folder / "1" / "adapter" / "adapter_model.safetensors").is_file()
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "multirun.yaml", "report"]


@pytest.fixture
def job():
    """``job(*overrides)``: the config of a sweep's job, in a process that takes itself for one."""

    def make(*overrides: str):
        register_resolvers()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [*overrides, "hydra.mode=MULTIRUN"], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return cfg

    yield make
    HydraConfig.instance().cfg = None


def test_several_devices_in_a_job_name_the_launcher(job):
    several = ("experiment=demo", "trainer.devices=2", "strategy=ddp")
    (problem,) = problems(job(*several))
    assert "2 processes" in problem and "the launcher basic" in problem and "hydra/launcher=slurm_a100" in problem
    assert not problems(job(*several, "hydra/launcher=slurm_a100"))
    (problem,) = problems(job(*several, "hydra/launcher=submitit_slurm"))
    assert problem == "hydra.launcher.tasks_per_node is 1; trainer.devices asks for 2 processes"
    assert not problems(job("experiment=demo"))


def test_the_slurm_script_asks_for_gpus_and_is_requeued(job, tmp_path, monkeypatch):
    """What submitit would hand to sbatch, which it looks for on the PATH."""
    submitit = pytest.importorskip("submitit", reason="needs the extra sweeps")
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    cfg = job("experiment=v2_7b", "trainer.devices=8", "strategy=ddp", "hydra/launcher=slurm_a100")
    chosen = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
    retries = chosen.pop("max_num_timeout")
    for name in ("_target_", "submitit_folder"):
        chosen.pop(name)
    common = ("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "timeout_min", "mem_gb", "name")
    common += ("stderr_to_stdout",)
    executor = submitit.AutoExecutor(tmp_path, cluster="slurm", slurm_max_num_timeout=retries)
    executor.update_parameters(**{name if name in common else f"slurm_{name}": chosen[name] for name in chosen})
    script = executor._executor._make_submission_file_text("true", "job")
    for line in ("nodes=1", "ntasks-per-node=8", "gpus-per-node=8", "time=1440", "signal=USR2@300", "requeue"):
        assert f"#SBATCH --{line}\n" in script, script
