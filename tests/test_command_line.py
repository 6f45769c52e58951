"""Wrong use gets one clear line and exit code 2, before any work begins."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lav2.adapter import load_adapter
from lav2.cli import remove_empty
from lav2.errors import UserError
from lav2.llama import load_llama

ROOT = Path(__file__).parents[1]


def call(*arguments, cwd=ROOT):
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["adapter.promt_layers=3"],
            "adapter.promt_layers, the nearest is adapter.prompt_layers; adapter has",
        ),
        (["llama=8b"], "llama: there is no '8b'; choose one of 13b, "),
        (["adapter.gate=per_layer"], "adapter.gate is 'per_layer'; choose one of per_head, scalar"),
        (["adapter.visual_layers=5", "adapter.prompt_layers=4"], "K <= N - L"),
        (["llama.path=/nowhere"], "/nowhere"),
        (["vision.name=ViT-Z"], "ViT-Z"),
        (["optim.caption.optimizer.lr=-1"], "optim.caption: Invalid learning rate: -1"),
        (["trainer.precision=7"], "trainer:"),
        (["tasks=[captions]"], "'captions'"),
        (["resume=/nowhere/run"], "/nowhere/run"),
        (["data=files", "paths.annotations=/nowhere/a.json", "paths.images=/nowhere"], "/nowhere/a.json"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_wrong_values_get_one_line(arguments, message, tmp_path):
    if not arguments[0].startswith("resume"):
        arguments = [*arguments, f"hydra.run.dir={tmp_path / 'run'}"]
    done = call("train.py", "experiment=demo", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()  # nothing is left behind


@pytest.mark.parametrize(
    ("run", "message"), [([], "run is not given: add run=<a run"), (["run=/no"], "run=/no: no adapter")]
)
def test_a_run_that_is_not_there_is_told_of_before_torch_is_imported(run, message):
    done = call("-X", "importtime", "chat.py", *run)
    assert done.returncode == 2 and f"error: {message}" in done.stderr and " lav2.run_folder" in done.stderr
    assert not re.search(r"\| +(torch|lightning|open_clip)$", done.stderr, re.MULTILINE)


def test_what_writes_nothing_leaves_nothing(tmp_path, monkeypatch):
    """Neither the folder that Hydra made nor those above it; but what others hold, and what is elsewhere."""
    here = tmp_path / "here"
    for folder in ("outputs/v2_7b/now", "runs/mine/now", "../elsewhere/now"):
        (here / folder).mkdir(parents=True)
    (here / "runs" / "notes").touch()
    monkeypatch.chdir(here)
    for folder in ("outputs/v2_7b/now", "runs/mine/now", "runs", "nowhere"):
        remove_empty(here / folder)
    remove_empty(tmp_path / "elsewhere" / "now")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == {"here", "here/runs", "here/runs/notes", "elsewhere"}


def test_all_problems_are_reported_together(tmp_path):
    done = call(
        "train.py",
        "experiment=demo",
        "adapter.scale=both",
        "llama.dtype=int3",
        "optim.instruction.warmup=2",
        "data.validation=3",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    assert done.returncode == 2
    for part in ("4 problems", "adapter.scale", "llama.dtype", "optim.instruction", "validation is 3"):
        assert part in done.stderr


def test_an_adapter_of_another_base_is_refused(adapted, tmp_path):
    """By its shape, before its tensors: the embedded LLaMA is not the one this adapter was trained on."""
    from lav2.adapter import save_adapter

    save_adapter(tmp_path, adapted)
    with pytest.raises(UserError, match="another shape; this one has .*hidden_size"):
        load_adapter(tmp_path, load_llama(ROOT / "lav2" / "demo" / "weights" / "llama"))


def test_evaluation_names_what_is_missing(tmp_path):
    done = call("evaluate.py", f"run={tmp_path / 'nowhere'}", "eval=coco_caption")
    assert done.returncode == 2 and "nowhere: no adapter there" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"format": 99}))
    (tmp_path / "adapter" / "adapter_model.safetensors").touch()
    done = call("evaluate.py", f"run={tmp_path}", "eval=coco_caption", f"paths.images={tmp_path}")
    assert done.returncode == 2 and "paths.annotations is None" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_one_line(tmp_path):
    """Checked before the start: a file system of 64 kB cannot take the run's checkpoints."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let tests mount a file system")
    try:
        done = call("train.py", "experiment=demo", "debug=fast", f"hydra.run.dir={tmp_path / 'run'}")
        assert done.returncode == 2 and "no space" in done.stderr and "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", tmp_path])
