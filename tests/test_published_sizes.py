"""The parameter counts of the papers' models, from the meta device (V2 paper, sec 5; Table 1's 14M)."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lav2.adapter import parameter_summary
from lav2.cli import CONF, register_resolvers
from lav2.training.run import bare_model


def summary(*overrides):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parameter_summary(bare_model(compose("train", list(overrides))))


def parts(found):
    return {(row["owner"], row["part"]): row["count"] for row in found["parts"]}


def test_7b():
    found = summary("experiment=v2_7b")
    assert parts(found) == {
        ("caption", "visual projector"): 8_819_200,
        ("caption", "gates"): 32,
        ("instruction", "bias"): 1_359_872,
        ("instruction", "scale"): 1_359_872,
        ("instruction", "norms"): 266_240,
        ("instruction", "prompts"): 2_539_520,
        ("instruction", "gates"): 992,
        ("frozen", "language model"): 6_738_415_616,
    }
    assert found["groups"]["instruction"]["count"] == 5_526_496
    assert found["trainable"] == 14_345_728


def test_7b_with_input_side_scale():
    assert parts(summary("experiment=v2_7b", "adapter.scale=input"))["instruction", "scale"] == 1_138_688


@pytest.mark.parametrize(
    "size, base, bias, scale_input, norms, prompts_and_gates",
    [
        ("13b", 13_015_864_320, 2_129_920, 1_781_760, 414_720, 3_995_160),
        ("33b", 32_528_943_616, 4_147_200, 3_471_360, 805_376, 7_857_148),
        ("65b", 65_285_660_672, 6_799_360, 5_693_440, 1_318_912, 12_948_416),
    ],
)
def test_larger_sizes(size, base, bias, scale_input, norms, prompts_and_gates):
    found = parts(summary(f"experiment=v2_{size}", "adapter.scale=input"))
    assert found["frozen", "language model"] == base
    assert found["instruction", "bias"] == bias and found["instruction", "scale"] == scale_input
    assert found["instruction", "norms"] == norms
    assert found["instruction", "prompts"] + found["instruction", "gates"] == prompts_and_gates
    assert (
        parts(summary(f"experiment=v2_{size}"))["instruction", "scale"] == bias
    )  # output side: one a row, as the bias


def test_the_papers_14m():
    """65B with input-side scale, bias and norms and no prompts: what the authors released as the chat model."""
    found = summary(
        "experiment=v2_65b",
        "adapter.scale=input",
        "adapter.visual_layers=0",
        "adapter.prompt_layers=0",
        "adapter.prompt_length=0",
        "tasks=[instruction]",
    )
    assert found["trainable"] == 13_811_712


def test_train_without_weights_prints_the_table_in_seconds(tmp_path):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "train.py", "experiment=v2_65b", f"hydra.run.dir={tmp_path / 'run'}"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "65,285,660,672" in done.stdout and "llama.path" in done.stdout
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"config.yaml", "parameters.json"}  # no record of a run that has finished
    assert json.loads((tmp_path / "run" / "parameters.json").read_text())["groups"]["frozen"]["count"] == 65_285_660_672
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(("size", "count"), [("7b", 2_764_800), ("65b", 13_811_712)])
def test_the_chatbots(size, count):
    """The same of conf/experiment/chat_*: language alone."""
    assert summary(f"experiment=chat_{size}")["trainable"] == count


def test_v1_on_scienceqa_without_images():
    """LLaMA-Adapter_T: language alone, 1.2M."""
    assert summary("experiment=v1_scienceqa_text")["trainable"] == 1_229_760
