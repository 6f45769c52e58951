"""An adapter trained on a rounded base answers on that base, unless one says otherwise."""

import json

import pytest
import torch

from lav2 import load
from lav2.errors import UserError
from lav2.evaluation.run import evaluate
from lav2.llama import load_llama
from tests.evaluation.conftest import composed

TOKENS = torch.randint(3, 500, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    pytest.importorskip("torchao")
    from lav2.training.run import train

    folder = tmp_path_factory.mktemp("rounded") / "run"
    train(config("llama.quantize=int8", "trainer.max_steps=2", "trainer.limit_val_batches=0"), folder)
    return folder


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
