"""Two processes against one on the same global batches: losses, norms, weights, checkpoints and adapter folders."""

import filecmp
import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch

from lav2 import load
from lav2.adapter import load_adapter, save_adapter
from lav2.evaluation.runs import read_run
from lav2.llama import load_llama
from lav2.tasks import TASKS
from tests.training.processes import run, run_in_processes
from tests.training.small import settings
from tests.training.test_joint import adapter, metrics
from tests.training.test_kills import forked
from tests.training.test_logging import captions_table, written

CLIP = 0.1  # every step's gradients of both tasks are larger
COMMON = [
    *("trainer.max_steps=3", "trainer.accumulate_grad_batches=2", "callbacks.checkpoint_every=2"),
    *("trainer.val_check_interval=2", "trainer.limit_val_batches=1.0", "data.validation=0.02"),
    *(f"optim.{task}.clip={CLIP}" for task in TASKS),
]
SGD = [
    "trainer.limit_val_batches=0",
    *(f"optim.{task}.optimizer.{setting}" for task in TASKS for setting in ("_target_=torch.optim.SGD", "lr=1.0")),
    *(f"~optim.{task}.optimizer.betas" for task in TASKS),
]
ALONE = ["data.batch_size={caption: 8, instruction: 4}"]
TOGETHER = ["data.batch_size={caption: 4, instruction: 2}", "trainer.devices=2"]


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory) -> Path:
    """Runs of one process, DDP and FSDP2; and those that were killed (-9) and went on in another number of processes,
    one of them with activation checkpointing and offloading, which must change nothing."""
    folder = tmp_path_factory.mktemp("runs")
    base = ["experiment=demo", *settings(world), *COMMON]
    run(folder / "one", base + ALONE)
    run(folder / "one_sgd", base + ALONE + SGD)
    killed = signal.SIGKILL, 2
    assert forked(partial(run, folder / "one_then_fsdp2", base + ALONE, killed)) == -signal.SIGKILL
    resumed = ["strategy=fsdp2", "strategy.strategy.offload=true", "activation_checkpointing=true"]
    told = ["strategy=fsdp2", "trainer.max_steps=2", "logger=wandb", "logger.wandb.mode=offline"]
    jobs = [
        (folder / "ddp", [*base, *TOGETHER, "strategy=ddp"]),
        (folder / "fsdp2", [*base, *TOGETHER, "strategy=fsdp2"]),
        (folder / "ddp_sgd", [*base, *TOGETHER, *SGD, "strategy=ddp"]),
        (folder / "fsdp2_sgd", [*base, *TOGETHER, *SGD, "strategy=fsdp2"]),
        (folder / "one_then_fsdp2", [*base, *TOGETHER, *resumed, f"resume={folder / 'one_then_fsdp2'}"]),
        (folder / "fsdp2_told", [*base, *TOGETHER, *told]),
        (folder / "ddp_stopped", [*base, *TOGETHER, "strategy=ddp"], (signal.SIGTERM, 0)),
        (folder / "fsdp2_skips", [*base, *TOGETHER, "strategy=fsdp2", "on_nan=skip"], None, "loss"),
        (folder / "ddp_stops", [*base, *TOGETHER, "strategy=ddp"], None, "loss"),
        (folder / "fsdp2_then_one", [*base, *TOGETHER, "strategy=fsdp2"], killed),
    ]
    with mock.patch.dict(os.environ, WANDB_DATA_DIR=str(folder)):
        run_in_processes(jobs)
    shutil.copytree(folder / "fsdp2_then_one", folder / "fsdp2_killed")
    run(folder / "fsdp2_then_one", [*base, *ALONE, f"resume={folder / 'fsdp2_then_one'}"])
    return folder


def reports(folder: Path) -> list[dict]:
    """What :func:`tests.training.processes.run` tells of each process."""
    return [json.loads(folder.with_name(f"{folder.name}_{rank}.json").read_text()) for rank in (0, 1)]


def same_rows(rows: list[dict], expected: list[dict]) -> None:
    for row, one in zip(rows, expected, strict=True):
        for column in row:
            assert float(row[column] or 0) == pytest.approx(float(one[column] or 0), abs=1e-5), (row["step"], column)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "fsdp2_killed", "one_then_fsdp2", "fsdp2_then_one"])
def test_losses_norms_and_gates_are_those_of_one_process(runs, name):
    """Of both tasks, with unequal numbers of response tokens a process, accumulated and clipped; and on validation."""
    rows, expected = metrics(runs / name), metrics(runs / "one")
    same_rows(rows, expected[:2] if name == "fsdp2_killed" else expected)
    assert {"train/caption_loss", "train/instruction_loss", "train/visual_gate"} <= set(rows[0])
    assert all(float(row[f"train/{task}_gradient_norm"]) > 2 * CLIP for row in rows for task in TASKS)
    assert any(row["val/instruction_loss"] for row in rows)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "one_then_fsdp2", "fsdp2_then_one"])
def test_weights_are_those_of_one_process(runs, name):
    """But for key biases, which shift all scores of a query alike: their true gradient is zero, and AdamW makes steps
    of its rounding errors."""
    one, here = adapter(runs / "one"), adapter(runs / name)
    assert one.keys() == here.keys()
    for key, value in one.items():
        off = (value - here[key]).abs()
        if key.endswith("wk.bias"):
            assert off.max() < 1e-4, key
        elif key.endswith("in_proj_bias"):  # query, key, value
            query, of_keys, values = off.chunk(3)
            assert max(query.max(), values.max()) < 1e-5 and of_keys.max() < 1e-4, key
        else:
            assert off.max() < 1e-5, key


@pytest.mark.parametrize("name", ["ddp_sgd", "fsdp2_sgd"])
def test_under_sgd_every_weight_is_that_of_one_process(runs, name):
    """No exceptions; and unlike AdamW, SGD sees how far a gradient was clipped."""
    one, here = adapter(runs / "one_sgd"), adapter(runs / name)
    same_rows(metrics(runs / name), metrics(runs / "one_sgd"))
    assert one.keys() == here.keys()
    for key, value in one.items():
        assert (value - here[key]).abs().max() < 1e-5, key


def test_the_adapter_folder_is_that_of_one_process_byte_for_byte(runs, tmp_path):
    """What rank 0 has written from shares, with the fingerprint of a base that no process held whole."""
    shared = runs / "fsdp2_killed" / "adapter"
    assert sorted(path.name for path in shared.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((shared / "adapter_config.json").read_text())
    about = {name: config[name] for name in config.keys() - {"format", "adapter", "feature_width", "base"}}
    save_adapter(tmp_path, load_adapter(shared, load_llama(config["base_path"])), **about)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        if name.endswith(".json"):
            assert json.loads((tmp_path / name).read_text()) == config
        else:
            assert filecmp.cmp(tmp_path / name, shared / name, shallow=False)
    for other in ("one", "ddp", "fsdp2", "one_then_fsdp2", "fsdp2_then_one"):
        assert filecmp.cmp(runs / other / "adapter" / "adapter_config.json", shared / "adapter_config.json", False)


def test_a_process_reads_its_share_of_the_base_alone(runs):
    base = json.loads((runs / "one" / "parameters.json").read_text())["groups"]["frozen"]["count"]
    read = [report["read"] for report in reports(runs / "one_then_fsdp2")]
    assert all(base / 2 <= numbers < 0.51 * base for numbers in read)


def test_checkpoints_hold_the_adapter_and_its_moments_whole(runs):
    """The same names, shapes and order under every strategy."""

    def layout(name):
        checkpoint = torch.load(next((runs / name / "checkpoints").glob("*.ckpt")), weights_only=True)
        (optimizer,) = checkpoint["optimizer_states"]
        return (
            {key: value.shape for key, value in checkpoint["state_dict"].items()},
            {key: value["exp_avg"].shape for key, value in optimizer["state"].items()},
            [group["params"] for group in optimizer["param_groups"]],
        )

    assert layout("fsdp2_killed") == layout("fsdp2") == layout("ddp") == layout("one")


def test_killed_runs_were_killed_and_a_stopped_one_saved(runs):
    """SIGTERM reached the second process alone."""
    assert read_run(runs / "fsdp2_killed").state == "killed"
    assert [report["exit"] for report in reports(runs / "ddp_stopped")] == [143, 143]
    assert read_run(runs / "ddp_stopped").state == "stopped"
    assert [path.name for path in (runs / "ddp_stopped" / "checkpoints").iterdir()] == ["step=1.ckpt"]


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "one_then_fsdp2", "fsdp2_told", "ddp_stopped", "ddp_stops"])
def test_the_first_process_alone_writes(runs, name):
    first, second = reports(runs / name)
    assert any("step=" in path for path in first["written"]) or name == "ddp_stops"
    assert any("run.json" in path for path in first["written"]) and second["written"] == []


def test_a_nan_in_one_process_stops_both_and_names_its_samples_alone(runs):
    first, second = reports(runs / "ddp_stops")
    assert first["error"] == second["error"]
    assert not first["spoiled"] and len(second["spoiled"]) == 4
    named = f"the caption group's gradient is not finite: caption loss nan, samples {', '.join(second['spoiled'])}. "
    assert f"step 1: {named}" in first["error"]
    assert len(metrics(runs / "ddp_stops")) == 1
    assert json.loads((runs / "ddp_stops" / "run.json").read_text())["state"] == "failed"


def test_a_nan_in_one_process_is_skipped_by_both(runs):
    """The captions' group takes no step in either process, the other trains as if nothing had been."""
    assert all(report["error"] is None for report in reports(runs / "fsdp2_skips"))
    rows, clean, trained = metrics(runs / "fsdp2_skips"), adapter(runs / "ddp"), adapter(runs / "fsdp2_skips")
    assert [row["train/skipped_steps"] for row in rows] == ["", "1.0", "1.0"]
    assert all(float(rows[2][f"train/{task}_loss"]) < 10 for task in ("caption", "instruction"))
    for key, value in trained.items():
        assert value.isfinite().all(), key
        if key.startswith("instruction.") and not key.endswith("wk.bias"):
            assert (value - clean[key]).abs().max() < 1e-4, key
    assert any((value - clean[key]).abs().max() > 1e-3 for key, value in trained.items() if key.startswith("caption."))


def test_wandb_is_told_what_a_sharded_model_says(runs):
    """All processes answer, one logs: what the adapter that was saved says of the pictures that were logged."""
    table, media = captions_table(written(runs / "fsdp2_told"))
    assert table["columns"] == ["image", "prompt", "reference", "step 2"]
    model = load(runs / "fsdp2_told")
    asked = [next(prompt for prompt in model.caption_prompts if prompt in row[1]) for row in table["data"]]
    answers = model.generate(asked, [media[row[0]["path"]] for row in table["data"]], max_new_tokens=48)
    assert len(answers) > 1 and answers == [row[3] for row in table["data"]]
