"""Joint training with disjoint parameters: the design's invariants 2, 4, 8 and 12, on real runs."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

from lav2.adapter import owner
from lav2.config import build_trainer
from lav2.data.slots import IMAGE
from lav2.errors import UserError
from lav2.training import run as run_module
from lav2.training.checkpoints import newest_checkpoint
from lav2.training.module import JointModule
from lav2.training.run import report_data


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def metrics(folder):
    """The rows of ``metrics.csv`` without what the machine decides."""
    with (folder / "metrics.csv").open() as file:
        return [
            {name: value for name, value in row.items() if not name.startswith("speed/")}
            for row in csv.DictReader(file)
        ]


def snapshots(monkeypatch):
    """Record every parameter's value after each optimizer step of the runs that follow, the start first."""
    taken = []

    def values(module):
        return {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}

    monkeypatch.setattr(JointModule, "on_train_start", lambda self: taken.append(values(self)), raising=False)
    monkeypatch.setattr(JointModule, "on_train_batch_end", lambda self, *_: taken.append(values(self)), raising=False)
    return taken


PLAIN = (
    "optim.caption.warmup=0",
    "optim.instruction.warmup=0",
    "optim.caption.optimizer.lr=1e-2",
    "optim.instruction.optimizer.lr=1e-2",
    "trainer.max_steps=2",
)


def test_everything_that_trains_moves_and_nothing_else(run, monkeypatch):
    """Invariant 2: step 1 moves gates, bias, scale and norms; a zero gate lets prompts and projector move in step 2."""
    taken = snapshots(monkeypatch)
    run("run", *PLAIN)
    start, first, second = taken
    late = (".projector.", ".prompts.prompt")
    for name in start:
        moved = [not torch.equal(*pair) for pair in ((start[name], first[name]), (first[name], second[name]))]
        if owner(name) == "frozen":
            assert moved == [False, False], name
        else:
            assert moved == [not any(part in name for part in late), True], name


@pytest.mark.parametrize("task", ["caption", "instruction"])
def test_a_task_alone_moves_its_own_group_only(run, monkeypatch, task):
    taken = snapshots(monkeypatch)
    run("run", *PLAIN, f"tasks=[{task}]")
    moved = {name for name in taken[0] if not torch.equal(taken[0][name], taken[-1][name])}
    assert moved == {name for name in taken[0] if owner(name) == task}


@pytest.mark.parametrize("experiment", ["demo", "family/v2_lora"])
def test_joint_training_leaves_the_instruction_group_bit_equal(run, experiment):
    """Invariant 4: no interference, as an identity."""
    short = ("trainer.max_steps=3", "trainer.limit_val_batches=0")
    joint = adapter(run("joint", *short, experiment=experiment))
    alone = adapter(run("alone", *short, "tasks=[instruction]", experiment=experiment))
    names = [name for name in joint if name.startswith("instruction.")]
    assert names and all(torch.equal(joint[name], alone[name]) for name in names)


def test_validation_leaves_training_alone(run):
    """Invariant 12."""
    with_validation, without = (
        adapter(run("with", "trainer.val_check_interval=1")),
        adapter(run("without", "trainer.limit_val_batches=0")),
    )
    assert all(torch.equal(with_validation[name], without[name]) for name in with_validation)


LONGER = ("trainer.max_steps=18", "trainer.accumulate_grad_batches=2", "callbacks.checkpoint_every=2")


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """An uninterrupted run, with accumulation: a step takes two batches."""
    folder = tmp_path_factory.mktemp("whole")
    run_module.train(config(*LONGER), folder)
    return folder


@pytest.mark.parametrize("killed_at", [3, 5, 16])
def test_killed_and_resumed_equals_uninterrupted(run, config, whole, tmp_path, monkeypatch, killed_at):
    """Invariant 8 on one process: in the middle of an epoch and, at 16, in the second epoch of the instructions."""
    step = JointModule.training_step

    def killed(self, batch, index):
        if self.global_step == killed_at:
            raise MemoryError("killed")
        return step(self, batch, index)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(JointModule, "training_step", killed)
        run("broken", *LONGER)
    broken = tmp_path / "broken"
    run_module.train(config(*LONGER, f"resume={broken}"), broken)

    assert all(torch.equal(value, adapter(broken)[name]) for name, value in adapter(whole).items())
    assert metrics(broken) == metrics(whole)


def test_a_resume_with_another_config_is_refused(run, config, tmp_path):
    folder = run("run")
    with pytest.raises(UserError, match="adapter.prompt_length is 7 here and 6 there"):
        run_module.train(config("adapter.prompt_length=7", f"resume={folder}"), folder)
    with pytest.raises(UserError, match="no run folder"):
        run_module.train(config(f"resume={tmp_path / 'nowhere'}"), tmp_path / "nowhere")


def test_a_checkpoint_of_another_adapter_is_refused(run, config):
    """Even where the configs agree, the parameters are checked one by one."""
    folder = run("run")
    checkpoint = newest_checkpoint(folder / "checkpoints")
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"].pop("model.adapter.instruction.norm.weight")
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match="adapter.instruction.norm.weight"):
        run_module.train(config(f"resume={folder}"), folder)


def test_a_run_folder_holds_what_the_readme_says(run):
    folder = run("run")
    content = {path.name for path in folder.iterdir()}
    json_files = {"parameters.json", "data_problems.json", "run.json"}
    assert content == {"config.yaml", "metrics.csv", "checkpoints", "adapter"} | json_files
    summary = json.loads((folder / "parameters.json").read_text())
    stored = sum(tensor.numel() for tensor in adapter(folder).values())
    assert summary["trainable"] == stored == sum(p["count"] for p in summary["parts"] if p["owner"] != "frozen")
    checkpoint = torch.load(next((folder / "checkpoints").glob("*.ckpt")), weights_only=True)
    assert all(".adapter." in name for name in checkpoint["state_dict"])  # never the base weights
    assert {"train/caption_loss", "val/caption_loss", "train/instruction_loss", "val/instruction_loss"} <= set(
        metrics(folder)[0]
    )


def test_the_data_report_has_places_for_images_among_the_tokens(config, monkeypatch):
    """As training has them, without the encoder."""
    shown = {}
    monkeypatch.setattr("lav2.training.run.print_examples", lambda training, *_: shown.update(training))
    cfg = config("data_report=true", experiment="family/lavin")
    report_data(cfg)
    assert (shown["caption"][0].tokens == IMAGE).sum() == cfg.adapter.visual_length > 0
    assert IMAGE not in shown["instruction"][0].tokens


def test_steps_between_validations_are_steps_of_the_whole_run(config):
    """However long an epoch is, and however many batches a step takes."""
    lengths = "trainer.val_check_interval=50", "trainer.check_val_every_n_epoch=1", "trainer.accumulate_grad_batches=2"
    trainer = build_trainer(config(*lengths), logger=False)
    assert trainer.val_check_interval == 100 and trainer.check_val_every_n_epoch is None
