"""Training that starts from another run's adapter takes one that means the same, and needs it no more afterwards."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lav2.config import problems
from lav2.errors import UserError
from lav2.inference import load
from lav2.llama import load_llama, open_checkpoint
from lav2.llama.loading import fingerprint, stored_fingerprint
from lav2.training.module import JointModule
from lav2.training.record import recorded
from lav2.training.run import train
from tests.training.test_joint import adapter

BASE = Path(__file__).parents[2] / "lav2" / "demo" / "weights" / "llama"
SHORT = ("trainer.max_steps=2", "trainer.limit_val_batches=0", "callbacks.checkpoint_every=1")


@pytest.fixture(scope="module")
def first(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "run"
    train(config(*SHORT), folder)
    return folder


@pytest.mark.parametrize(
    "override, differing",
    [
        ("adapter.gate_activation=none", "adapter.gate_activation 'tanh' where this run has 'none'"),
        ("adapter.prompt_projection=frozen", "adapter.prompt_projection 'tuned' where this run has 'frozen'"),
        ("vision.channel_order=BGR", "vision.channel_order 'RGB' where this run has 'BGR'"),
    ],
)
def test_settings_that_change_what_parameters_mean_are_named(config, first, override, differing):
    (found,) = problems(config(f"adapter_from={first}", override))
    assert found.startswith(f"adapter_from={first}: ") and differing in found


def test_other_settings_may_change(config, first):
    changes = "adapter.ownership=shared", "adapter.gate_init=random", "adapter.lora.scaling=2", "tasks=[caption]"
    assert problems(config(f"adapter_from={first}", *changes)) == []


def test_other_base_weights_of_the_same_shape_are_refused(config, first, tmp_path):
    shutil.copytree(BASE, tmp_path / "other")
    weights = load_file(BASE / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="trained on other base weights of the same shape"):
        train(config(*SHORT, f"adapter_from={first}", f"llama.path={tmp_path / 'other'}"), tmp_path / "run")
    assert stored_fingerprint(open_checkpoint(BASE)) == fingerprint(load_llama(BASE))  # as FSDP2 knows it


def test_another_encoder_is_refused(config, first, tmp_path):
    start = shutil.copytree(first / "adapter", tmp_path / "start")
    about = json.loads((start / "adapter_config.json").read_text())
    (start / "adapter_config.json").write_text(json.dumps(about | {"vision_fingerprint": "0123456789abcdef"}))
    with pytest.raises(UserError, match="trained with another image encoder"):
        train(config(*SHORT, f"adapter_from={start}"), tmp_path / "run")


def test_a_resumed_run_does_not_need_the_adapter_it_began_with(config, first, tmp_path, monkeypatch):
    start, folder, step = shutil.copytree(first, tmp_path / "start"), tmp_path / "run", JointModule.training_step
    seen = {}

    def killed(self, batch, index):
        if self.global_step == 0:
            seen.update({name: value.clone() for name, value in self.model.adapter.state_dict().items()})
        if self.global_step == 1:
            raise MemoryError("killed")
        return step(self, batch, index)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(JointModule, "training_step", killed)
        train(config(*SHORT, f"adapter_from={start}"), folder)
    assert all(torch.equal(value, seen[name]) for name, value in adapter(start).items())
    shutil.rmtree(start)
    train(config(*SHORT, f"adapter_from={start}", f"resume={folder}"), folder)
    assert json.loads((folder / "run.json").read_text())["steps"] == 2


def test_what_does_not_train_leaves_a_runs_record_alone(tmp_path):
    """Such as a plan for a run that was stopped."""
    (tmp_path / "config.yaml").touch()
    (tmp_path / "run.json").write_text(json.dumps(stopped := {"state": "stopped", "process": "elsewhere:1"}))
    recorded(lambda cfg, folder: {})(None, tmp_path)
    assert json.loads((tmp_path / "run.json").read_text()) == stopped


def test_a_phase_of_language_alone_leaves_an_adapter_that_sees(config, first, tmp_path):
    """It trains nothing that sees and needs no encoder; what it started from says how images are read."""
    train(config(*SHORT, "tasks=[instruction]", f"adapter_from={first}"), tmp_path / "run")
    said, before = (
        json.loads((folder / "adapter" / "adapter_config.json").read_text()) for folder in (tmp_path / "run", first)
    )
    for name in ("vision", "vision_fingerprint", "caption_prompts"):
        assert said[name] == before[name] and said[name]
    assert load(tmp_path / "run", device="cpu").encoder is not None
    owned = json.loads((tmp_path / "run" / "parameters.json").read_text())
    assert owned["trainable"] == owned["groups"]["instruction"]["count"] > 0  # what sees stays as it is
