"""DeepSpeed's own engine, on CPU in two processes, against one process; the first run compiles for a minute.

ZeRO-3 shards every tensor, and the processes have unequally many pieces of the loss.
"""

import json
import signal

import pytest

from lav2.errors import UserError
from lav2.training.checkpoints import newest_checkpoint
from lav2.training.run import train
from tests.training.processes import run, run_in_processes
from tests.training.small import settings
from tests.training.test_joint import adapter, metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("runs")
    base = [
        *("experiment=demo", *settings(world), "trainer.max_steps=3", "trainer.accumulate_grad_batches=2"),
        *("trainer.limit_val_batches=0", "optim.caption.clip=null", "optim.instruction.clip=null"),
    ]
    run(folder / "one", base)
    together = ["data.batch_size={caption: 4, instruction: 2}", "trainer.devices=2"]
    jobs = []
    for stage in (2, 3):
        name = folder / f"zero{stage}"
        job = [*base, *together, f"strategy=deepspeed_zero{stage}"]
        jobs += [(folder / f"zero{stage}_offload", [*job, "strategy.strategy.offload=true"])]
        jobs += [(folder / f"zero{stage}_stops", job, None, "gradient")]
        jobs += [(name, job, (signal.SIGKILL, 2)), (name, [*job, f"resume={name}"])]
    run_in_processes(jobs)
    return folder


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero2_offload", "zero3_offload"])
def test_it_trains_as_one_process_does(runs, name):
    """Killed and resumed, or with what is sharded kept in the host's memory."""
    rows, expected = metrics(runs / name), metrics(runs / "one")
    assert len(rows) == len(expected) == 3
    for row, one in zip(rows, expected, strict=True):
        for column in row:  # the norms of gradients are DeepSpeed's secret
            assert float(row[column]) == pytest.approx(float(one[column]), abs=1e-5), (row["step"], column)
    one, here = adapter(runs / "one"), adapter(runs / name)
    off = {name: (value - here[name]).abs() > 1e-5 for name, value in one.items() if not name.endswith("wk.bias")}
    assert sum(int(where.sum()) for where in off.values()) < 0.02 * sum(where.numel() for where in off.values())
    assert all((value - here[name]).abs().max() < 1e-3 for name, value in one.items())


@pytest.mark.parametrize("stage", [2, 3])
def test_a_gradient_that_is_not_finite_stops_it(runs, stage):
    """Of a loss that is; nothing of it enters the weights."""
    folder = runs / f"zero{stage}_stops"
    for rank in (0, 1):
        told = json.loads(folder.with_name(f"{folder.name}_{rank}.json").read_text())
        assert told["error"].startswith("step 1: the gradient is not finite: caption loss")
    assert len(metrics(folder)) == 1 and not list((folder / "checkpoints").glob("step=2*"))


def test_its_checkpoints_hold_no_base_and_are_its_own(runs, config):
    folder = runs / "zero3"
    newest = newest_checkpoint(folder / "checkpoints")
    size = sum(path.stat().st_size for path in newest.rglob("*.pt"))
    base = json.loads((folder / "parameters.json").read_text())["groups"]
    assert size < 4 * base["caption"]["bytes"] + 4 * base["instruction"]["bytes"] + 1e6 < base["frozen"]["bytes"]
    with pytest.raises(UserError, match="DeepSpeed alone reads and writes"):
        changes = "optim.caption.clip=null", "optim.instruction.clip=null", "trainer.accumulate_grad_batches=2"
        steps = "trainer.max_steps=3", "trainer.limit_val_batches=0"
        train(config(*changes, *steps, f"resume={folder}"), folder)
