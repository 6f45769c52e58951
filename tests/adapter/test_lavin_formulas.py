"""LaVIN as a whole against its formulas (arXiv 2305.15023), transcribed without the adapter's own passes."""

import pytest
import torch
import torch.nn.functional as F

from lav2.data.slots import IMAGE, MODALITY
from lav2.llama.model import rotary, rotate
from tests.adapter.methods import lavin

TEMPERATURE, GROUPS = 2.0, 2
HEADS, KEY_HEADS, HEAD_SIZE = 4, 2, 8
TEXTS = {
    "with an image": [MODALITY, 1, 20, 21, IMAGE, IMAGE, IMAGE, 7, 33, 5],
    "without": [MODALITY, 1, 20, 21, 22, 23, 7],
}


def mixed(mixture, x, decides):
    """x' = x + w₀ B(A x) + w₁ D(A x), w = softmax(E x₀ / t): ``decides`` (…, C) are the states x₀ that route ``x``."""
    weights = torch.softmax((decides @ mixture.router.weight.T + mixture.router.bias) / TEMPERATURE, -1)
    hidden = x @ mixture.down.weight.T + mixture.down.bias
    for expert in range(2):
        halves = zip(hidden.chunk(GROUPS, -1), mixture.up[expert], strict=True)
        answer = torch.cat([half @ up.T for half, up in halves], -1) + mixture.bias[expert]
        x = x + weights[..., expert, None] * answer
    return x


def softmax_attention(query, key, value, visible=None):
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    return torch.softmax(scores, -1) @ value


def rms(norm, x):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + norm.eps) * norm.weight


def language_path(model, text, images):
    """Tokens of one row (T,) → logits (T, V): embeddings, mask, blocks, final norm, head."""
    llama, group = model.llama, model.adapter["instruction"]
    modality, images = group.modality[int(IMAGE in text)], iter(images)
    embedded = {MODALITY: lambda: modality, IMAGE: lambda: next(images)}
    x = torch.stack([embedded[t]() if t < 0 else llama.tok_embeddings.weight[t] for t in text])
    places = torch.arange(len(text))
    visible = (places <= places[:, None]) & ((places > 0) | (places[:, None] == 0))  # none but itself sees modality
    turns = rotary(places, HEAD_SIZE, 10000.0)[0, 0]
    for block, tuning in zip(llama.layers, group.layers, strict=True):
        attention, feed_forward = block.attention, block.feed_forward
        normed = rms(block.attention_norm, x)
        normed = mixed(tuning.mixture, normed, decides=normed[0])
        query, key, value = (normed @ getattr(attention, name).weight.T for name in ("wq", "wk", "wv"))
        heads = []
        for head in range(HEADS):
            own = slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
            start = head * KEY_HEADS // HEADS * HEAD_SIZE
            shared = slice(start, start + HEAD_SIZE)
            q, k = rotate(query[None, None, :, own], turns)[0, 0], rotate(key[None, None, :, shared], turns)[0, 0]
            heads.append(softmax_attention(q, k, value[:, shared], visible))
        x = x + torch.cat(heads, -1) @ attention.wo.weight.T
        normed = rms(block.ffn_norm, x)
        gated = F.silu(normed @ feed_forward.w1.weight.T) * (normed @ feed_forward.w3.weight.T)
        x = x + gated @ feed_forward.w2.weight.T
    return rms(llama.norm, x) @ llama.output.weight.T


def clip_block(block, mixture, x, routing):
    """One block of CLIP on states (B, S, width) of B images, class token first."""
    normed = F.layer_norm(x, x.shape[-1:], block.ln_1.weight, block.ln_1.bias)
    # each image's class token routes that image; or, in the authors' code, place by place the first image routes all
    decides = normed[:, :1] if routing == "per_sample" else normed[0]  # (B, 1, width) or (S, width)
    normed = mixed(mixture, normed, decides)
    projected = normed @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
    heads = [
        softmax_attention(query, key, value)
        for query, key, value in zip(
            *(part.split(x.shape[-1] // block.attn.num_heads, -1) for part in projected.chunk(3, -1)), strict=True
        )
    ]
    x = x + torch.cat(heads, -1) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
    normed = F.layer_norm(x, x.shape[-1:], block.ln_2.weight, block.ln_2.bias)
    hidden = F.gelu(normed @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias)
    return x + hidden @ block.mlp.c_proj.weight.T + block.mlp.c_proj.bias


def image_encoder(model, pixels, routing):
    """Pixels (B, 3, H, W) → features (B, 3, width): the class tokens of blocks 2, 4 and 6."""
    x, class_tokens = model.encoder.visual._embeds(pixels), []
    blocks = model.encoder.visual.transformer.resblocks
    for block, mixture in zip(blocks, model.adapter["caption"].mixtures, strict=True):
        x = clip_block(block, mixture, x, routing)
        class_tokens.append(x[:, 0])
    return torch.stack([class_tokens[number - 1] for number in (2, 4, 6)], 1)


def image_tokens(projector, features):
    """Features (B, P, F) → image tokens (B, P, C): two layers with SiLU between."""
    hidden = features @ projector.input.weight.T + projector.input.bias
    return (hidden * torch.sigmoid(hidden)) @ projector.output.weight.T + projector.output.bias


@torch.no_grad()
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_language_model(llama, encoder, pixels, text):
    model = lavin(llama, encoder)
    visual = pixels[:1] if IMAGE in text else None
    expected = language_path(model, text, [] if visual is None else model.visual_prompts(visual)[0])
    found = model(torch.tensor([text]), visual)[0]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("routing", ["per_sample", "first_of_batch"])
def test_the_image_encoder(llama, encoder, pixels, routing):
    """``first_of_batch`` is what the authors' code does: weights (S, 2), by the first image's state at each place,
    serve every image of the batch."""
    model = lavin(llama, encoder, routing=routing)
    expected = image_encoder(model, pixels, routing)
    torch.testing.assert_close(model.encode(pixels, train=False), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_from_pixels_to_logits(llama, encoder, pixels):
    model, text = lavin(llama, encoder), TEXTS["with an image"]
    tokens = image_tokens(model.adapter["caption"].projector, image_encoder(model, pixels, "per_sample"))
    found = model(torch.tensor([text] * 3), pixels)
    for row in range(3):
        torch.testing.assert_close(found[row], language_path(model, text, tokens[row]), atol=1e-3, rtol=1e-3)
