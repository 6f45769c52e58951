"""An adapter trained on a rounded base answers on that base, unless one says otherwise."""

import json

import pytest
import torch
from torch import nn

from lav2 import load
from lav2.errors import UserError
from lav2.evaluation.run import evaluate
from lav2.llama import load_llama
from lav2.llama.quantization import QUANTIZATIONS, is_quantized
from lav2.training.module import JointModule
from lav2.training.run import train
from tests.evaluation.conftest import composed
from tests.training.test_joint import PLAIN

TOKENS = torch.randint(3, 500, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    pytest.importorskip("torchao")
    folder = tmp_path_factory.mktemp("rounded") / "run"
    train(config("llama.quantize=int8", "trainer.max_steps=2", "trainer.limit_val_batches=0"), folder)
    return folder


def weights(llama):
    """Of the linear layers that are rounded, as the products see them."""
    layers = {name: layer for name, layer in llama.named_modules() if isinstance(layer, nn.Linear)}
    return {name: layer(torch.eye(layer.in_features)) for name, layer in layers.items() if is_quantized(name)}


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
def test_training_moves_all_of_the_adapter_and_no_rounded_weight(config, tmp_path, monkeypatch, quantize):
    pytest.importorskip("torchao", reason="needs torchao (the extra quantize)")
    started, ended = {}, {}

    def begin(module):
        started.update(module.model.adapter.state_dict())
        started.update({name: value.clone() for name, value in started.items()}, **weights(module.model.llama))

    def end(module):
        ended.update(module.model.adapter.state_dict(), **weights(module.model.llama))

    monkeypatch.setattr(JointModule, "on_train_start", begin, raising=False)
    monkeypatch.setattr(JointModule, "on_train_end", end, raising=False)
    cfg = config(f"llama.quantize={quantize}", *PLAIN, "trainer.limit_val_batches=0")
    train(cfg, tmp_path)
    plain = weights(load_llama(cfg.llama.path))
    assert len(plain) == 7 * len(load_llama(cfg.llama.path).layers)
    for name, value in plain.items():
        assert torch.equal(started[name], ended[name]) and not torch.equal(ended[name], value), name
    for name in started.keys() - plain.keys():
        assert not torch.equal(started[name], ended[name]), name


def test_it_is_loaded_as_it_was_trained(trained):
    base = json.loads((trained / "adapter" / "adapter_config.json").read_text())["base_path"]
    rounded, plain = load_llama(base, quantize="int8"), load_llama(base)
    with torch.no_grad():
        expected = {kind: llama(TOKENS) for kind, llama in (("int8", rounded), (None, plain))}
        assert not torch.equal(expected["int8"], expected[None])
        for quantize, kind in (("trained", "int8"), (None, None), ("int8", "int8")):
            assert torch.equal(load(trained, quantize=quantize).model.llama(TOKENS), expected[kind])


def test_an_evaluation_tells_how_the_base_was_rounded(trained, world):
    captions = world / "heldout" / "captions.json", world / "heldout" / "images"
    paths = [f"paths.annotations={captions[0]}", f"paths.images={captions[1]}", "eval.generation.max_new_tokens=4"]
    for given, said in (([], "int8"), (["quantize=null"], None)):
        evaluate(composed(f"run={trained}", "eval=coco_caption", *paths, *given))
        settings = json.loads((trained / "evaluation" / "coco_caption" / "settings.json").read_text())
        assert settings["model"].get("quantize") == said
    with pytest.raises(UserError, match="quantize is 'int3'; choose trained, null or one of int8, nf4"):
        evaluate(composed(f"run={trained}", "eval=coco_caption", *paths, "quantize=int3"))
