"""Zero-initialised attention in the embedded ViT and RoBERTa: their tasks, a short run, and (slow) what it gains."""

import json
import re

import pytest
import torch

from lav2.adapter.classifier import ZeroInitClassifier
from lav2.demo.pretrain_vision import WEIGHTS
from lav2.demo.world import COLORS, RGB, sample_scenes
from lav2.demo.zero_init import PictureTask, TextTask, main, pairs

SHORT = ["seeds=[0,1]", "steps=2", "training=64", "scored=20", "split=dev"]


def test_the_embedded_roberta_tells_masked_words():
    pytest.importorskip("transformers")
    from transformers import AutoTokenizer, RobertaForMaskedLM

    from lav2.demo.pretrain_roberta import measures

    folder = WEIGHTS / "roberta"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    model = RobertaForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    held_out = sample_scenes(1000, seed=1)
    found = measures(model, AutoTokenizer.from_pretrained(folder), held_out, batches=3)
    card = json.loads((WEIGHTS / "roberta_card.json").read_text())
    assert found["masked_words_right"] == pytest.approx(card["masked_words_right"], abs=0.04)
    assert found["masked_words_right"] > 4 * found["commonest_word_right"]


def test_no_scene_is_in_two_splits():
    train, dev, test = (set(pairs(split, count)) for split, count in (("train", 4000), ("dev", 1500), ("test", 1500)))
    assert len(train) == 4000 and len(dev) == 1500
    assert not train & dev and not train & test and not dev & test
    assert test <= set(sample_scenes(1000, seed=1)), "of these, pre-training saw none"


def test_a_captions_class_is_the_color_of_what_is_large():
    pytest.importorskip("transformers")
    samples = TextTask().samples("dev", 200)
    assert len(samples) == 200
    for text, label in samples:
        assert re.findall(rf"\blarge ({'|'.join(COLORS)})\b", text) == [COLORS[label]]
        assert len(re.findall(rf"\bsmall ({'|'.join(COLORS)})\b", text)) == 1
    assert not set(samples) & set(TextTask().samples("train", 1000)), "no caption is in two splits"
    first = sum(text.index("large") < text.index("small") for text, _ in samples)
    assert 60 < first < 140, "the order of the two gives nothing away"


def test_a_pictures_class_is_the_color_of_what_comes_first():
    task = PictureTask()
    mean, std = (torch.tensor(task.encoder.visual.preprocess_cfg[name])[:, None, None] for name in ("mean", "std"))
    palette = torch.tensor(list(RGB.values())) / 255
    for (picture, label), scene in zip(task.samples("dev", 30), pairs("dev", 30), strict=True):
        first = scene.items[0]
        cell = (picture * std + mean)[:, 24 * first.row :, 24 * first.column :][:, :24, :24].flatten(1).T
        distance = torch.cdist(cell, palette).amin(0)
        assert distance[label] < 0.08, f"nothing {COLORS[label]} where {first} lies"


@pytest.mark.parametrize("task", ["vit", "roberta"])
def test_a_short_run_leaves_table_scores_and_classifiers(task, tmp_path, capsys):
    if task == "roberta":
        pytest.importorskip("transformers")
    main([f"zero_init={task}", f"folder={tmp_path}", *SHORT])
    (result,) = json.loads((tmp_path / "zero_init.json").read_text()).values()
    assert len(result["linear"]["accuracies"]) == len(result["zero_init"]["accuracies"]) == 2
    assert result["linear"]["parameters"] < result["zero_init"]["parameters"]
    assert "zero-initialised attention" in (tmp_path / "zero_init.txt").read_text()
    backbone = PictureTask().backbone if task == "vit" else TextTask().backbone
    model = ZeroInitClassifier.load(tmp_path / task / "zero_init" / "seed_1", backbone)
    assert any(prompts.gate.weight.any() for prompts in model.model.prompts), "gates have moved"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["vit", "roberta"])
def test_it_beats_a_linear_head_by_more_than_the_spread(task, tmp_path):
    if task == "roberta":
        pytest.importorskip("transformers")
    (result,) = main([f"zero_init={task}", f"folder={tmp_path}"]).values()
    assert min(result["zero_init"]["accuracies"]) > max(result["linear"]["accuracies"])
    spread = result["zero_init"]["spread"] + result["linear"]["spread"]
    assert result["zero_init"]["mean"] - result["linear"]["mean"] > 2 * spread
