"""Zero-initialised attention in ViT and RoBERTa: the frozen model at the start, V1's formula ever after."""

from copy import deepcopy

import open_clip
import pytest
import timm
import torch
from torch import nn

from lav2.adapter.classifier import ZeroInitClassifier
from lav2.adapter.elsewhere import ZeroInitBackbone
from lav2.demo.pretrain_vision import MODEL
from lav2.errors import UserError

TOKENS = torch.tensor([[0, 5, 9, 4, 2], [0, 7, 2, 1, 1]])  # two texts, the second padded


def open_clip_vit() -> nn.Module:
    return open_clip.create_model(MODEL).visual


def timm_vit(**settings) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=3, num_heads=3, num_classes=0, **settings
    )


def timm_with_norms() -> nn.Module:
    return timm_vit(qk_norm=True, qkv_bias=False)


def roberta(kind: str = "Roberta") -> nn.Module:
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 32}
    config = getattr(transformers, f"{kind}Config")(vocab_size=11, max_position_embeddings=12, pad_token_id=1, **shape)
    return getattr(transformers, f"{kind}Model")(config, add_pooling_layer=False)


def bert() -> nn.Module:
    return roberta("Bert")


def xlm_roberta() -> nn.Module:
    return roberta("XLMRoberta")


BACKBONES = [open_clip_vit, timm_vit, timm_with_norms, roberta, bert, xlm_roberta]


def inputs_of(make):
    generator = torch.Generator().manual_seed(1)
    if make in (open_clip_vit, timm_vit, timm_with_norms):
        size = 72 if make is open_clip_vit else 32
        return torch.randn(2, 3, size, size, generator=generator)
    return {"input_ids": TOKENS, "attention_mask": (TOKENS != 1).long()}


def call(backbone, inputs):
    output = backbone(**inputs) if isinstance(inputs, dict) else backbone(inputs)
    return output if isinstance(output, torch.Tensor) else output.last_hidden_state


@pytest.fixture(params=BACKBONES, ids=lambda make: make.__name__)
def case(request):
    """(a backbone of random weights, biases among them, and inputs for it)."""
    torch.manual_seed(0)
    backbone = request.param().eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return backbone.requires_grad_(False), inputs_of(request.param)


def opened(model: nn.Module) -> nn.Module:
    """The model with gates away from 0, as after training."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name:
                parameter.copy_(torch.linspace(-1.0, 1.5, len(parameter)))
    return model


def test_at_the_start_outputs_are_the_frozen_models(case):
    backbone, inputs = case
    with torch.no_grad():
        alone = call(backbone, inputs)
        adapted = ZeroInitBackbone(backbone, prompt_length=4)
        assert torch.equal(call(adapted, inputs), alone)
        assert not torch.allclose(call(opened(adapted), inputs), alone, atol=1e-3)
        assert torch.equal(call(backbone, inputs), alone), "outside of the adapted model the backbone is as it was"


def literal(attention: nn.Module, x: torch.Tensor, prompt: torch.Tensor, gate: torch.Tensor, visible: torch.Tensor):
    """V1's attention as the paper writes it, a head and a row at a time, before W_o: x (B, T, C) → (B, T, C).

    The scores of the words and, through a softmax of their own and the gate, of the prompts stand side by side before
    the values of both. ``visible`` (B, T) tells words from padding.
    """
    if hasattr(attention, "query"):
        weights = [attention.query.weight, attention.key.weight, attention.value.weight]
        biases = [attention.query.bias, attention.key.bias, attention.value.bias]
    elif hasattr(attention, "qkv"):
        weights = attention.qkv.weight.chunk(3)
        biases = [0, 0, 0] if attention.qkv.bias is None else attention.qkv.bias.chunk(3)
    else:
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    norms = getattr(attention, "q_norm", nn.Identity()), getattr(attention, "k_norm", nn.Identity())
    size = x.shape[-1] // len(gate)
    rows = []
    for row, seen in zip(x, visible, strict=True):
        answers = []
        for h in range(len(gate)):
            (w_q, b_q), (w_k, b_k), (w_v, b_v) = (
                (w[h * size : (h + 1) * size], b if isinstance(b, int) else b[h * size : (h + 1) * size])
                for w, b in zip(weights, biases, strict=True)
            )
            query = norms[0](row @ w_q.T + b_q)
            words = (query @ norms[1](row @ w_k.T + b_k).T / size**0.5).masked_fill(~seen, -torch.inf)
            prompts = query @ norms[1](prompt @ w_k.T + b_k).T / size**0.5
            scores = torch.cat([gate[h].tanh() * prompts.softmax(-1), words.softmax(-1)], dim=-1)
            answers.append(scores @ torch.cat([prompt, row]) @ w_v.T + scores.sum(-1, keepdim=True) * b_v)
        rows.append(torch.cat(answers, dim=-1))
    return torch.stack(rows)


def test_outputs_are_v1s_formula_written_out(case):
    backbone, inputs = case
    adapted = opened(ZeroInitBackbone(backbone, prompt_length=4, prompt_layers=2))
    written = deepcopy(backbone)
    assert len(adapted.names) == 2
    for name, own in zip(adapted.names, adapted.prompts, strict=True):
        attention = written.get_submodule(name)

        def forward(x, *others, attention=attention, own=own, **settings):
            tokens = isinstance(inputs, dict)
            visible = inputs["attention_mask"].bool() if tokens else torch.ones(x.shape[:2], dtype=torch.bool)
            answer = literal(attention, x, own.prompt, own.gate.weight, visible)
            if hasattr(attention, "query"):
                return answer, None  # W_o is another module's
            return attention.proj(answer) if hasattr(attention, "proj") else (attention.out_proj(answer), None)

        attention.forward = forward
    with torch.no_grad():
        torch.testing.assert_close(call(adapted, inputs), call(written, inputs), atol=2e-5, rtol=1e-4)


def test_gates_and_head_move_first_prompts_next_the_backbone_never(case):
    backbone, inputs = case
    model = ZeroInitClassifier(backbone, num_classes=3, prompt_length=4).train()
    assert not model.model.backbone.training, "a frozen backbone has no dropout"
    frozen = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in (1, 2):
        before = {name: p.detach().clone() for name, p in model.trained().items()}
        nn.functional.cross_entropy(model(inputs), torch.tensor([0, 2])).backward()
        optimizer.step()
        optimizer.zero_grad()
        still = {name for name, p in model.trained().items() if torch.equal(p, before[name])}
        prompts = {name for name in before if name.endswith(".prompt")}
        assert still == (prompts if step == 1 else set()), f"step {step}"
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, frozen[name]), name
    assert all(p.grad is None for p in backbone.parameters())


def test_saved_and_loaded_it_answers_the_same(case, tmp_path):
    backbone, inputs = case
    model = opened(ZeroInitClassifier(backbone, num_classes=3, prompt_length=4, prompt_layers=2)).eval()
    model.save(tmp_path)
    loaded = ZeroInitClassifier.load(tmp_path, deepcopy(backbone))
    with torch.no_grad():
        assert torch.equal(loaded(inputs), model(inputs))
        next(p for p in backbone.parameters() if p.dim() == 2)[0] += 1
    with pytest.raises(UserError, match="another backbone"):
        ZeroInitClassifier.load(tmp_path, backbone)


def test_a_backbone_that_prompts_cannot_enter_is_refused():
    with pytest.raises(UserError, match="no attention that prompts can enter"):
        ZeroInitBackbone(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 1))  # its batch comes second
    with pytest.raises(UserError, match="prompt_layers is 4; VisionTransformer has 3"):
        ZeroInitBackbone(timm_vit(), prompt_layers=4)
    with pytest.raises(UserError, match="num_classes=0"):
        ZeroInitClassifier(timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=5), num_classes=3)
    with pytest.raises(UserError, match="no classifier at"):
        ZeroInitClassifier.load("nowhere", timm_vit())
