"""V1, LoRA and late fusion: the same parts, composed otherwise; each against its formula written out."""

from functools import cache

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lav2.adapter import adapt, parameter_summary
from lav2.adapter.config import AdapterConfig
from lav2.cli import CONF, register_resolvers
from lav2.errors import UserError
from lav2.llama import Llama, LlamaConfig
from tests.adapter.methods import FAMILY, METHODS, V1, trained
from tests.conftest import small_adapter

SIZES = {"7b": (4096, 32, 11008), "13b": (5120, 40, 13824)}


def test_late_fusion_is_the_formula_written_out(llama, tokens, features):
    """V1: prompt = own prompt + what was seen, the same in the last L layers; gate · softmax(q kᵀ / √D) v beside."""
    model = trained(llama, V1)
    visual = model.adapter["caption"].projector(features)
    checked = 0
    for hooks, layer, tuning in zip(
        model.bind(features), llama.layers, model.adapter["instruction"].layers, strict=False
    ):
        query = torch.randn(3, 4, 7, 8)
        found = hooks.attend(layer.attention, query, torch.zeros(3, 4, 7, 8))
        if tuning.prompts is None:
            assert not found.any()
            continue
        prompt = tuning.prompts.prompt[None] + visual  # (B, P, C)
        key, value = prompt @ layer.attention.wk.weight.T, prompt @ layer.attention.wv.weight.T
        for head in range(4):
            group = slice(head // 2 * 8, head // 2 * 8 + 8)
            weights = torch.softmax(query[:, head] @ key[..., group].transpose(1, 2) / 8**0.5, -1)
            expected = torch.tanh(tuning.prompts.gate.weight[head]) * (weights @ value[..., group])
            assert torch.allclose(found[:, head], expected, atol=1e-5)
            checked += 1
    assert checked == 12


def test_bottleneck_is_the_formula_written_out(llama, features):
    model = trained(llama, FAMILY["v1_scienceqa"])
    projector = model.adapter["caption"].projector
    joined = torch.cat([features[:, scale] for scale in range(5)], -1)
    hidden = joined @ projector.input.weight.T + projector.input.bias
    expected = (hidden * torch.sigmoid(hidden)) @ projector.output.weight.T + projector.output.bias
    assert torch.allclose(model.visual_prompts(features), expected[:, None], atol=1e-5)


def test_lora_is_the_formula_written_out_and_folds(llama):
    """y = s · ((W + scaling B A) x + b), and the same as one plain layer (invariant 11)."""
    model = trained(llama, {"lora": {"rank": 3, "scaling": 0.5}})
    tuning, layer = model.adapter["instruction"].layers[0].linears["w2"], llama.layers[0].feed_forward.w2
    x = torch.randn(5, 48)
    update = 0.5 * tuning.lora.b @ tuning.lora.a
    expected = tuning.scale * (x @ (layer.weight + update).T + tuning.bias)
    assert torch.allclose(tuning(layer, x), expected, atol=1e-4)
    assert torch.allclose(tuning.fold(layer)(x), expected, atol=1e-4)


def test_new_gate_multiplies(llama):
    gate = trained(llama, FAMILY["released"]).adapter["instruction"].layers[-1].prompts.gate
    assert torch.equal(gate()[:, 0, 0], torch.tanh(gate.weight) * gate.new_gate)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": "late"}, "visual_layers is 2 with adapter.fusion=late"),
        (V1 | {"visual_length": 3}, "must equal adapter.prompt_length 5"),
        (V1 | {"prompt_layers": 0, "prompt_length": 0}, "prompt_layers is 0"),
        (V1 | {"projector": {"kind": "mlp"}}, "projector.kind=mlp makes each patch a prompt of its own"),
        ({"lora": {"rank": -1}}, "adapter.lora.rank is -1"),
        ({"lora": {"rank": 2, "linears": ["wx"]}}, "adapter.lora.linears"),
        ({"lora": {"alpha": 2}}, "adapter.lora has no setting 'alpha'"),
        ({"ownership": "both"}, "disjoint, shared"),
    ],
)
def test_wrong_choices_are_named(llama, changes, message):
    with pytest.raises(UserError, match=message):
        adapt(llama, small_adapter(**changes), feature_width=16)


@cache
def configured(adapter: str) -> AdapterConfig:
    """A method as ``conf/adapter`` has it."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = compose("train", [f"adapter={adapter}"]).adapter
    return AdapterConfig.from_dict(OmegaConf.to_container(values))


def published(adapter: str, size: str, feature_width: int) -> dict:
    """The parameter table of a method as configured, on a LLaMA of 7B's or 13B's shape without weights."""
    hidden_size, layers, intermediate = SIZES[size]
    with torch.device("meta"):
        llama = Llama(LlamaConfig(32000, hidden_size, layers, layers, layers, intermediate))
        return parameter_summary(adapt(llama, configured(adapter), feature_width))


@pytest.mark.parametrize(
    ("adapter", "trainable"),
    [
        ("v1", 1_228_800 + 960),
        ("v1_caption", 10_043_840),
        ("v1_scienceqa", 1_228_800 + 960 + 561_216),
    ],
)
def test_published_parameter_counts(adapter, trainable):
    assert published(adapter, "7b", 768)["trainable"] == trainable


def test_lora_has_the_released_models_count():
    """Rank 16 on all seven linears of 7B: 39,976,960."""
    parts = published("v2_lora", "7b", 768)["parts"]
    assert next(row["count"] for row in parts if row["part"] == "LoRA") == 39_976_960


def test_v2_alone_divides_its_parameters_among_the_tasks():
    """Sec 4.2; V1 and LaVIN train all on all. The small ones that the invariants are tested with do likewise."""
    for name in ("v1", "v1_caption", "v1_scienceqa", "v2", "v2_lora", "lavin"):
        ownership = "disjoint" if name.startswith("v2") else "shared"
        assert configured(name).ownership == AdapterConfig.from_dict(METHODS[name]).ownership == ownership
