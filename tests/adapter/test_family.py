"""V1, LoRA and late fusion: the same parts, composed otherwise; each against its formula written out."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lav2.adapter import adapt, load_adapter, owned, parameter_summary, save_adapter, trained_groups
from lav2.adapter.config import AdapterConfig
from lav2.adapter.model import AdaptedLlama
from lav2.cli import CONF, register_resolvers
from lav2.errors import UserError
from lav2.llama import Llama, LlamaConfig
from tests.conftest import small_adapter

V1 = {
    "visual_layers": 0,
    "bias": False,
    "scale": "none",
    "norms": "none",
    "ownership": "shared",
    "fusion": "late",
    "visual_length": 5,
}
FAMILY = {
    "v1_caption": V1,
    "v1_one_query": V1 | {"visual_length": 1},
    "v1_scienceqa": V1 | {"projector": {"kind": "bottleneck", "width": 8, "scales": 5}},
    "v1_scalar_gate": V1 | {"gate": "scalar", "gate_activation": "none"},
    "v2_lora": {"bias": False, "scale": "none", "lora": {"rank": 3, "scaling": 0.5}},
    "v2_lora_and_bias": {"lora": {"rank": 3, "linears": ["wq", "wv", "w2"]}},
    "released": V1 | {"lora": {"rank": 2}, "new_gate": True, "prompt_projection": "frozen", "norms": "all"},
}
SIZES = {"7b": (4096, 32, 11008), "13b": (5120, 40, 13824)}


def trained(llama: Llama, changes: dict) -> AdaptedLlama:
    """As if it had been trained: every parameter is away from its start."""
    model = adapt(llama, small_adapter(**changes), feature_width=16)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("changes", FAMILY.values(), ids=FAMILY)
def test_starts_from_the_frozen_model_exactly(llama, tokens, features, changes):
    """Invariant 1."""
    model = adapt(llama, small_adapter(**changes), feature_width=16)
    assert torch.equal(model(tokens), llama(tokens))
    assert torch.equal(model(tokens, features), llama(tokens))


@pytest.mark.parametrize("changes", FAMILY.values(), ids=FAMILY)
def test_rows_without_an_image_are_as_if_alone(llama, tokens, features, changes):
    """Invariants 1 and 5: in a mixed batch a row without an image has the logits of a pass without images."""
    model = trained(llama, changes)
    with torch.no_grad():
        mixed = model(tokens, features, has_image=torch.tensor([True, False, True]))
        assert torch.equal(mixed[[0, 2]], model(tokens, features)[[0, 2]])
        assert torch.allclose(mixed[1], model(tokens)[1], atol=1e-5)
        for parameter in owned(model, "caption").values():
            parameter.add_(torch.randn_like(parameter))
        assert not torch.allclose(model(tokens, features), mixed, atol=1e-3)
        assert torch.equal(model(tokens, features, has_image=torch.tensor([True, False, True]))[1], mixed[1])


@pytest.mark.parametrize("changes", FAMILY.values(), ids=FAMILY)
def test_save_and_load_gives_the_same_logits(llama, tokens, features, changes, tmp_path):
    """Invariant 7."""
    model = trained(llama, changes)
    save_adapter(tmp_path, model)
    assert torch.equal(load_adapter(tmp_path, llama)(tokens, features), model(tokens, features))


@pytest.mark.parametrize("task", ["caption", "instruction"])
def test_shared_ownership_lets_every_task_train_all(llama, tokens, features, task):
    model = trained(llama, V1)
    model(tokens, features, task).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.adapter.parameters())
    assert trained_groups(model, [task], "shared") == ["caption", "instruction"]
    assert trained_groups(model, [task], "disjoint") == [task]


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


def published(adapter: str, size: str, feature_width: int) -> dict:
    """The parameter table of a method as configured, on a LLaMA of 7B's or 13B's shape without weights."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = compose("train", [f"adapter={adapter}"]).adapter
    hidden_size, layers, intermediate = SIZES[size]
    with torch.device("meta"):
        llama = Llama(LlamaConfig(32000, hidden_size, layers, layers, layers, intermediate))
        return parameter_summary(adapt(llama, AdapterConfig.from_dict(OmegaConf.to_container(values)), feature_width))


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
