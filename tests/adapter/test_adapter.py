"""LLaMA-Adapter V2: its choices, its formulas written out, and invariant 11; the others are every method's."""

import pytest
import torch
import torch.nn.functional as F

from lav2.adapter import AdapterConfig, adapt, owner
from lav2.adapter.tuning import LinearTuning, LowRank, NormTuning
from lav2.errors import UserError
from lav2.llama.model import RMSNorm, rotary, rotate
from tests.conftest import small_adapter

CHOICES = [
    {},
    {"scale": "input"},
    {"scale": "none", "bias": False, "norms": "none"},
    {"gate": "scalar", "gate_activation": "none"},
    {"prompt_projection": "frozen"},
    {"norms": "blocks"},
    {"projector": {"kind": "linear_patches"}},
    {"projector": {"kind": "linear_pooled"}},
    {"prompt_layers": 0, "prompt_length": 0},
]


@pytest.mark.parametrize("changes", CHOICES, ids=str)
def test_starts_from_the_frozen_model_exactly(llama, tokens, features, changes):
    """Invariant 1: with and without an image."""
    model = adapt(llama, small_adapter(**changes), feature_width=16)
    assert torch.equal(model(tokens), llama(tokens))
    assert torch.equal(model(tokens, features), llama(tokens))


def test_starts_from_the_frozen_model_exactly_in_bf16(llama, tokens, features):
    llama.to(torch.bfloat16)
    model = adapt(llama, small_adapter(), feature_width=16)
    assert torch.equal(model(tokens, features), llama(tokens))


def test_routing_changes_no_logits(adapted, tokens, features):
    expected = adapted(tokens, features)
    assert torch.equal(adapted(tokens, features, "caption"), expected)
    assert torch.equal(adapted(tokens, features, "instruction"), expected)


def test_ownership_follows_the_paper(adapted):
    """Sec 4.2: projector and early gates learn from captions; late prompts and gates, norms, biases, scales from
    instructions; the language model from nothing."""
    owners = {name: owner(name) for name, _ in adapted.named_parameters()}
    assert {name for name, who in owners.items() if who == "caption"} == {
        name for name in owners if ".projector." in name or ".caption.gates." in name
    }
    assert all(who == "frozen" for name, who in owners.items() if name.startswith("llama."))


@pytest.mark.parametrize("scale", ["output", "input"])
@pytest.mark.parametrize("projection", ["tuned", "frozen"])
def test_forward_is_the_formulas_written_out(llama, tokens, features, scale, projection):
    """A literal transcription, loop by loop: zero-initialised attention, bias tuning, early fusion."""
    model = adapt(llama, small_adapter(scale=scale, prompt_projection=projection), feature_width=16)
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    caption, instruction = model.adapter["caption"], model.adapter["instruction"]
    visual = caption.projector(features)
    heads, kv_heads, size = 4, 2, 8

    def linear(tuning, layer, x):
        if scale == "output":
            return tuning.scale * (layer.weight @ x + tuning.bias)
        return layer.weight @ (tuning.scale * x) + tuning.bias

    def norm(tuning, x):
        return x / torch.sqrt((x * x).mean() + llama.config.norm_eps) * tuning.weight

    def attend(query, keys, values):
        return torch.softmax(torch.stack([query @ key for key in keys]) / size**0.5, 0) @ torch.stack(values)

    with torch.no_grad():
        row = 1
        xs = [llama.tok_embeddings.weight[token] for token in tokens[row]]
        for index, (block, tuning) in enumerate(zip(llama.layers, instruction.layers, strict=True)):
            attention, linears = block.attention, tuning.linears
            normed = [norm(tuning.norms["attention_norm"], x) for x in xs]
            turn = [rotary(torch.tensor([position]), size, 10000.0) for position in range(len(xs))]

            def project(name, vectors, layer=attention, linears=linears):
                return [linear(linears[name], getattr(layer, name), x) for x in vectors]

            def head(vector, index):
                return vector[index * size : (index + 1) * size]

            def turned(vector, position, turn=turn):
                return rotate(vector[None, None, None], turn[position])[0, 0, 0]

            queries, keys, values = (project(name, normed) for name in ("wq", "wk", "wv"))
            if index < 2:
                prompts, gate = list(visual[row]), caption.gates[index].weight
            elif index >= 3:
                prompts, gate = list(tuning.prompts.prompt), tuning.prompts.gate.weight
            else:
                prompts = []
            if projection == "tuned":
                prompt_keys, prompt_values = project("wk", prompts), project("wv", prompts)
            else:
                prompt_keys = [attention.wk.weight @ p for p in prompts]
                prompt_values = [attention.wv.weight @ p for p in prompts]
            outputs = []
            for position in range(len(xs)):
                parts = []
                for h in range(heads):
                    g = h * kv_heads // heads
                    query = turned(head(queries[position], h), position)
                    seen_keys = [turned(head(keys[p], g), p) for p in range(position + 1)]
                    part = attend(query, seen_keys, [head(values[p], g) for p in range(position + 1)])
                    if prompts:
                        answer = attend(query, [head(k, g) for k in prompt_keys], [head(v, g) for v in prompt_values])
                        part = part + torch.tanh(gate[h]) * answer
                    parts.append(part)
                outputs.append(linear(linears["wo"], attention.wo, torch.cat(parts)))
            xs = [x + output for x, output in zip(xs, outputs, strict=True)]
            for position, x in enumerate(xs):
                normed_x = norm(tuning.norms["ffn_norm"], x)
                gated = F.silu(linear(linears["w1"], block.feed_forward.w1, normed_x))
                gated = gated * linear(linears["w3"], block.feed_forward.w3, normed_x)
                xs[position] = x + linear(linears["w2"], block.feed_forward.w2, gated)
        expected = torch.stack([llama.output.weight @ norm(instruction.norm, x) for x in xs])
        assert torch.allclose(model(tokens, features)[row], expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("scale", ["output", "input", "none"])
def test_folding_gives_the_same_outputs(scale, rank):
    """Invariant 11."""
    layer = torch.nn.Linear(12, 7, bias=False)
    tuning = LinearTuning(layer, bias=True, scale=scale, lora=LowRank(layer, rank, 0.5) if rank else None)
    with torch.no_grad():
        for parameter in tuning.parameters():
            parameter.add_(torch.randn_like(parameter))
    x = torch.randn(5, 12)
    assert torch.allclose(tuning.fold(layer)(x), tuning(layer, x), atol=1e-5)


@pytest.mark.parametrize("scale", ["output", "input"])
def test_a_small_scale_counts_in_bf16(scale):
    """bf16 rounds 1.002 to 1: scale and bias must act in fp32, with one rounding at the end."""
    layer = torch.nn.Linear(64, 256, bias=False, dtype=torch.bfloat16)
    tuning = LinearTuning(layer, bias=True, scale=scale)
    x = torch.randn(16, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        tuning.scale.fill_(1.002)
        assert not torch.equal(tuning(layer, x), layer(x))
        tuning.bias.normal_()
        if scale == "output":
            expected = (layer(x).float() + tuning.bias) * tuning.scale
        else:
            expected = layer((x.float() * tuning.scale).bfloat16()).float() + tuning.bias
        assert torch.equal(tuning(layer, x), expected.bfloat16())


def test_a_small_norm_weight_counts_in_bf16():
    norm = RMSNorm(256, eps=1e-6).to(torch.bfloat16)
    tuning = NormTuning(norm)
    x = torch.randn(16, 256, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(tuning(norm, x), norm(x))
        tuning.weight.fill_(1.002)
        assert torch.equal(tuning(norm, x), (norm(x).float() * 1.002).bfloat16())
        assert not torch.equal(tuning(norm, x), norm(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visual_layers": 4}, "K <= N - L = 3"),
        ({"prompt_layers": 7}, "has 6 layers"),
        ({"gate": "per_layer"}, "per_head, scalar"),
        ({"scale": "both"}, "output, input, none"),
        ({"visual_length": -1}, "whole number"),
        ({"projector": {"width": 25, "heads": 2}}, "multiple"),
        ({"prompts": 3}, "no setting 'prompts'"),
    ],
)
def test_wrong_choices_are_named(llama, changes, message):
    with pytest.raises(UserError, match=message):
        adapt(llama, small_adapter(**changes), feature_width=16)


def test_the_papers_default_is_31_of_32_layers():
    from lav2.llama import LlamaConfig

    shape = LlamaConfig(32000, 4096, 32, 32, 32, 11008)
    assert AdapterConfig().last_layers(shape) == 31 and not AdapterConfig().problems(shape)


def test_what_generation_keeps_changes_nothing_beyond_rounding(adapted, tokens, features):
    with torch.inference_mode():
        kept = adapted.llama(tokens, hooks=adapted.bind(features, keep=True))
        torch.testing.assert_close(kept, adapted(tokens, features))
        linear = torch.nn.Linear(8, 4).bfloat16()
        tuning = LinearTuning(linear, True, "output")
        tuning.scale.normal_()
        tuning.bias.normal_()
        shift, scale = tuning.affine()
        y = linear(x := torch.randn(64, 8).bfloat16())
        torch.testing.assert_close(torch.addcmul(shift, y, scale), (y.float() + tuning.bias) * tuning.scale)
        assert shift.dtype is scale.dtype is torch.float32  # bf16 would round a scale of 1.002 to 1
        torch.testing.assert_close(torch.addcmul(shift, y, scale).bfloat16(), tuning(linear, x))
