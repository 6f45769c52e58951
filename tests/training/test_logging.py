"""What a run logs."""

import csv
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import wandb
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image
from wandb.proto import wandb_internal_pb2

from lav2 import load
from lav2.errors import UserError
from lav2.training.callbacks import MetricsFile
from lav2.training.tracking import run_id, wandb_logger
from tests.training.test_joint import adapter


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_resumed_run_continues_its_metrics_without_what_it_repeats(tmp_path):
    first = MetricsFile(tmp_path)
    for step in range(4):
        first.log_metrics({"loss": 4.0 - step}, step)
    first.save()
    second = MetricsFile(tmp_path)
    second.log_metrics({"loss": 1.5, "new": 7.0}, 2)
    second.log_metrics({"more": 8.0}, 2)
    second.save()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [("0", "4.0"), ("1", "3.0"), ("2", "1.5")]
    assert rows(tmp_path)[2]["new"] == "7.0" and rows(tmp_path)[2]["more"] == "8.0"


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))


def written(folder: Path) -> list[wandb_internal_pb2.Record]:
    """What wandb has recorded in the run folder: records in the blocks of a LevelDB log.

    Its service may still be writing, after its own word that it has finished; the last record is that of the exit.
    """
    wandb.teardown()
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        records = [wandb_internal_pb2.Record.FromString(content) for content in blocks(path.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.2)
    raise TimeoutError(f"wandb did not finish {path}")


def blocks(log: bytes) -> Iterator[bytes]:
    place, content = 7, b""  # after ":W&B" and a version
    while place + 7 <= len(log):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        length, kind = struct.unpack_from("<HB", log, place + 4)
        content += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield content
            content = b""


def history(records) -> dict[str, list]:
    """Every logged key with its values, in order."""
    values: dict[str, list] = {}
    for record in records:
        for item in record.history.item:
            values.setdefault(item.key or ".".join(item.nested_key), []).append(json.loads(item.value_json))
    return values


def artifacts(records, kind: str) -> list[dict[str, Path]]:
    """The files of every logged artifact of a kind, by their names in it."""
    logged = [record.artifact for record in records if record.WhichOneof("record_type") == "artifact"]
    return [
        {entry.path: Path(entry.local_path) for entry in one.manifest.contents} for one in logged if one.type == kind
    ]


def captions_table(records) -> tuple[dict, dict[str, Path]]:
    """The last table of captions, and the files of its pictures."""
    media = artifacts(records, "run_table")[-1]
    return json.loads(media["captions.table.json"].read_text()), media


def pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.convert("RGB").tobytes()


def test_wandb_offline_holds_what_the_run_logged(run, no_key, world):
    """Read back from wandb's own file: curves, gates, captions over time, the settings and the adapter."""
    steps = ("trainer.max_steps=4", "trainer.val_check_interval=2", "logger.wandb.tags=[first]", "seed=3")
    folder = run("run", "logger=wandb", *steps)
    records = written(folder)
    (started,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert list(started.tags) == ["first"] and started.display_name == "run" and started.project == "lav2"
    assert started.run_id == (folder / "wandb" / "id").read_text()
    settings = {item.key: json.loads(item.value_json) for record in records for item in record.config.update}
    settings |= {item.key: json.loads(item.value_json) for item in started.config.update}
    assert settings["seed"] == 3 and settings["adapter"]["prompt_length"] == 6

    logged, stored = history(records), rows(folder)
    both = ("train/{}_loss", "train/{}_learning_rate", "train/{}_gradient_norm", "val/{}_loss")
    curves = [name.format(task) for task in ("caption", "instruction") for name in both]
    for name in (*curves, "speed/tokens_per_second", "speed/memory_mb"):
        values = [float(row[name]) for row in stored if row[name]]
        assert len(values) == (2 if name.startswith("val/") else 4) and min(values) > 0, name
        assert logged[name] == pytest.approx(values), name
    gates = {name for name in logged if name.startswith("gates/")}
    assert gates == {f"gates/visual/{n}" for n in range(4)} | {f"gates/adaptation/{n}" for n in (4, 5)}
    saved = adapter(folder)
    for name in gates:
        kind, layer = name.removeprefix("gates/").split("/")
        gate = (
            f"caption.gates.{layer}.weight" if kind == "visual" else f"instruction.layers.{layer}.prompts.gate.weight"
        )
        assert len(logged[name]) == 4 and logged[name][0] > 0
        assert logged[name][-1] == pytest.approx(saved[gate].tanh().abs().mean().item()), name

    table, media = captions_table(records)
    assert table["columns"] == ["image", "prompt", "reference", "step 2", "step 4"]
    assert len(table["data"]) > 1
    by_pixels = {pixels(path): path for path in (world / "train" / "images").glob("*.png")}
    shown = [by_pixels[pixels(media[row[0]["path"]])] for row in table["data"]]
    told = json.loads((world / "train" / "captions.json").read_text())["annotations"]
    told += json.loads((world / "train" / "details.json").read_text())["annotations"]
    for (_, _, reference, *_), path in zip(table["data"], shown, strict=True):
        assert reference in {note["caption"] for note in told if note["image_id"] == int(path.stem)}
    model = load(folder)  # the adapter says what the table's last column says
    asked = [next(prompt for prompt in model.caption_prompts if prompt in row[1]) for row in table["data"]]
    assert model.generate(asked, shown, max_new_tokens=48) == [row[4] for row in table["data"]]
    (held,) = artifacts(records, "adapter")
    assert held.keys() == {"adapter_config.json", "adapter_model.safetensors"}
    weights = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    assert held["adapter_model.safetensors"].read_bytes() == weights


def test_wandb_changes_nothing_and_can_be_switched_off(run, no_key, monkeypatch):
    short = ("trainer.max_steps=3", "trainer.val_check_interval=2", "logger=wandb")
    off, tracked = run("off", *short, "logger.wandb.mode=disabled"), run("tracked", *short)
    assert not list(off.glob("wandb/*run*"))
    assert all(torch.equal(value, adapter(tracked)[name]) for name, value in adapter(off).items())
    choices = "choose one of online, offline, disabled, shared, run, dryrun, or"
    with pytest.raises(UserError, match=f"^logger.wandb.mode is 'of'; {choices} null$"):
        run("wrong", "logger=wandb", "logger.wandb.mode=of")
    for mode in (None, "offline"):  # wandb itself reads the variable in either case
        monkeypatch.setenv("WANDB_MODE", "offlin")
        with pytest.raises(UserError, match=f"^WANDB_MODE is 'offlin'; {choices} unset it$"):
            wandb_logger(tracked, "lav2", mode)
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert wandb_logger(tracked, "lav2")._wandb_init["mode"] == "dryrun"
    assert wandb.Settings(mode="dryrun")._offline and not wandb.Settings(mode="run")._offline


def test_one_process_alone_chooses_the_id_of_the_wandb_run(tmp_path, monkeypatch):
    """Processes that a cluster starts at once would each write another."""
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert run_id(tmp_path / "wandb" / "id") is None and not list(tmp_path.iterdir())
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    chosen = run_id(tmp_path / "wandb" / "id")
    assert run_id(tmp_path / "wandb" / "id") == chosen == (tmp_path / "wandb" / "id").read_text()
