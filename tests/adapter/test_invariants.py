"""The design's invariants 1 to 7, for every method of the family."""

import re
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file

from lav2.adapter import load_adapter, owned, save_adapter, trained_groups
from lav2.adapter.folder import WEIGHTS
from lav2.errors import UserError
from lav2.llama.generation import generate
from lav2.llama.model import rotary
from lav2.tasks import TASKS
from tests.adapter.methods import SEEING

seeing = pytest.mark.parametrize("method", SEEING, indirect=True)


@torch.no_grad()
def test_starts_from_the_frozen_model_exactly(method):
    """Invariant 1: with and without an image."""
    assert torch.equal(method.model(method.text), method.frozen(method.text, None))
    assert torch.equal(method.model(method.seen, method.visual), method.frozen(method.seen, method.visual))


@torch.no_grad()
@seeing
def test_without_an_image_no_visual_parameter_matters(method):
    """Invariant 1, exactly: in a pass of text alone and in a row of text among others; and with an image, they do."""
    model = method.trained()

    def passes():
        return model(method.text), model(method.mixed, method.visual, has_image=method.has_image)

    text, mixed = passes()
    for parameter in owned(model, "caption").values():
        parameter.add_(torch.randn_like(parameter))
    text_after, mixed_after = passes()
    assert torch.equal(text_after, text)
    changed = [not torch.allclose(*pair, atol=1e-3) for pair in zip(mixed_after, mixed, strict=True)]
    assert changed == method.has_image.tolist() and torch.equal(mixed_after[1], mixed[1])


@torch.no_grad()
@seeing
def test_a_row_does_not_depend_on_its_batch(method):
    """Invariants 1 and 5: with images and without in one batch, in batches of one kind, and by itself."""
    model = method.trained()
    mixed = model(method.mixed, method.visual, has_image=method.has_image)
    seen, text = model(method.seen, method.visual), model(method.text)
    assert torch.equal(mixed[[0, 2]], seen[[0, 2]])
    if method.config.fusion == "late":  # its prompts are then multiplied for every row apart, and round apart
        assert torch.allclose(mixed[1], text[1], atol=1e-5)
    else:
        assert torch.equal(mixed[1], text[1])
    for row in range(3):
        alone = model(method.seen[row : row + 1], method.visual[row : row + 1])[0]
        assert torch.allclose(seen[row], alone, atol=1e-4)
        assert torch.allclose(text[row], model(method.text[row : row + 1])[0], atol=1e-4)


def waits(name: str, fusion: str) -> bool:
    """Whether a parameter stands behind a factor that is zero at the start: a gate, LoRA's B, a mixture's way up."""
    if ".projector." in name:
        return fusion != "tokens"  # LaVIN's image tokens pass no gate
    return bool(re.search(r"\.prompts\.prompt$|\.new_gate$|\.lora\.a$|\.(down|router)\.|\.modality$", name))


def test_everything_that_trains_moves_and_nothing_else(method):
    """Invariant 2: what stands behind a zero waits for step 2, all else moves from step 1 on; the frozen never does."""
    optimizer = torch.optim.AdamW(method.model.adapter.parameters(), lr=1e-2, weight_decay=0.0)
    taken = []
    for _ in range(3):
        taken.append({name: parameter.detach().clone() for name, parameter in method.model.named_parameters()})
        method.step(optimizer, TASKS if method.config.sees else ("instruction",))
    for name in taken[0]:
        moved = [not torch.equal(before[name], after[name]) for before, after in zip(taken, taken[1:], strict=False)]
        trains = name.startswith("adapter.")
        assert moved == [trains and not waits(name, method.config.fusion), trains], name


@pytest.mark.parametrize("task", TASKS)
def test_a_loss_reaches_what_ownership_says(method, task):
    """Invariant 3: V2's groups get gradients from their own task alone; V1's and LaVIN's parameters from every task."""
    model, shared = method.trained(), method.config.ownership == "shared"
    method.loss(method.seen, method.visual, task).backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    moved = {name for name in with_gradient if model.get_parameter(name).grad.any()}
    caption, instruction = owned(model, "caption").keys(), owned(model, "instruction").keys()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == caption | instruction and not caption & instruction
    assert with_gradient == moved == (trainable if shared else owned(model, task).keys())
    groups = [group for group in TASKS if owned(model, group)]
    assert trained_groups(model, [task], method.config.ownership) == (groups if shared else [task])


@seeing
def test_captions_leave_the_instruction_group_bit_equal_where_it_is_its_own(method):
    """Invariant 4: joint training is instruction-only training, for the instruction group; where parameters are shared
    it is not."""
    start, after = deepcopy(method.model.adapter.state_dict()), []
    for tasks in (TASKS, ("instruction",)):
        method.model.adapter.load_state_dict(start)
        optimizer = torch.optim.AdamW(method.model.adapter.parameters(), lr=1e-2)
        for _ in range(3):
            method.step(optimizer, tasks)
        after.append({name: value.detach().clone() for name, value in owned(method.model, "instruction").items()})
    joint, alone = after
    equal = [torch.equal(joint[name], alone[name]) for name in alone]
    assert all(equal) if method.config.ownership == "disjoint" else not any(equal)


def test_cached_generation_equals_the_full_forward(method):
    """Invariant 5: unequal prompts in a batch, about images, of text, and mixed; each row again in a pass by itself."""
    model = method.trained()
    passes = [(method.text, None, None)]
    if method.config.sees:
        passes += [(method.seen, method.visual, None), (method.mixed, method.visual, method.has_image)]
    for tokens, visual, has_image in passes:
        prompts = [row[: len(row) - cut].tolist() for row, cut in zip(tokens, (0, 3, 1), strict=True)]
        hooks = model.bind(visual, has_image=has_image, keep=True)
        answers = generate(model.llama, prompts, hooks=hooks, max_new_tokens=8, eos_id=2)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            sees = visual is not None and (has_image is None or has_image[row])
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer]), visual[row : row + 1] if sees else None)[0]
            chosen = logits[len(prompt) - 1 :].argmax(-1).tolist()
            assert answer == chosen[: len(answer)] and (len(answer) == 8 or chosen[-1] == 2)


@torch.no_grad()
def test_prompts_act_in_their_layers_only(method):
    """Invariant 6, N = 6: what is seen enters the first K = 2 layers (V2) or the last L = 3 (V1) or, as LaVIN's tokens,
    none by itself; adaptation prompts the last L."""
    model = method.trained()
    x, turns = torch.randn(3, method.seen.shape[1], 32), rotary(torch.arange(method.seen.shape[1]), 8, 10000.0)

    def layers(visual):
        hooks = model.bind(visual)
        hooks[-1].embed(model.llama.tok_embeddings, method.seen)  # where LaVIN's modality token is
        return [block.transform(x, turns, hooks=hooks[index]) for index, block in enumerate(model.llama.layers)]

    def changed(before, after):
        return [index for index in range(6) if not torch.equal(before[index], after[index])]

    base = layers(method.visual)
    if method.config.sees:
        expected = {"early": [0, 1], "late": [3, 4, 5], "tokens": []}[method.config.fusion]
        assert changed(base, layers(method.visual + 1)) == expected
    for name, parameter in owned(model, "instruction").items():
        if name.endswith("prompts.prompt"):
            parameter.add_(1)
    assert changed(base, layers(method.visual)) == ([] if method.config.fusion == "tokens" else [3, 4, 5])


@torch.no_grad()
def test_what_is_saved_is_loaded_or_named(method, encoder, tmp_path):
    """Invariant 7: the same logits; a missing, unexpected or misshapen key is an error that names it."""
    model = method.trained()
    save_adapter(tmp_path, model)
    loaded = load_adapter(tmp_path, model.llama, encoder)
    assert torch.equal(loaded(method.seen, method.visual), model(method.seen, method.visual))
    state = load_file(tmp_path / WEIGHTS)
    name = sorted(state)[-1]
    for named, damaged in (
        (name, {key: value for key, value in state.items() if key != name}),
        ("instruction.more", state | {"instruction.more": torch.zeros(1)}),
        (name, state | {name: state[name][1:].contiguous()}),
    ):
        save_file(damaged, tmp_path / WEIGHTS)
        with pytest.raises(UserError, match=re.escape(named)):
            load_adapter(tmp_path, model.llama, encoder)
