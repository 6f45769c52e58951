"""Both tasks' batches in one pass through the model: the gradients of two passes, for half of the gathers."""

import json

import pytest
import torch

from lav2.adapter import adapt
from lav2.data.tokens import IGNORE
from lav2.llama import load_llama
from lav2.training.loss import labelled_tokens, response_loss, response_losses
from lav2.training.recomputation import recompute_blocks
from tests.adapter.methods import FAMILY
from tests.conftest import small_adapter
from tests.training.processes import run, run_in_processes
from tests.training.small import settings
from tests.training.test_joint import adapter, metrics

METHODS = {
    "v2": {},
    "v2, shared": {"ownership": "shared"},
    "v2, scale on the input": {"scale": "input"},
    "v2, late fusion": {"fusion": "late", "visual_layers": 0, "visual_length": 5},
    **{name: FAMILY[name] for name in ("v1_caption", "v2_lora", "v2_lora_and_bias", "released")},
}


@pytest.fixture
def batches(tokens, features):
    """Captions, one of which lacks its image, and instructions, longer and fewer."""

    def batch(tokens, prompt):
        return {"tokens": tokens, "labels": torch.where(torch.arange(tokens.shape[1]) < prompt, IGNORE, tokens)}

    longer = torch.randint(0, 50, (2, 14), generator=torch.Generator().manual_seed(4))
    seen = {"features": features, "has_image": torch.tensor([True, False, True])}
    return {"caption": batch(tokens, 4) | seen, "instruction": batch(longer, 6)}


def of_two_passes(model, batches):
    return {task: response_loss(model, rows, task) for task, rows in batches.items()}


def of_one_pass(model, batches):
    return response_losses(model, batches, {task: labelled_tokens(rows) for task, rows in batches.items()})


def step(losses_of, model, batches):
    model.zero_grad()
    losses = losses_of(model, batches)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {task: loss.detach() for task, loss in losses.items()}, gradients


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_losses_and_gradients_are_those_of_two_passes(llama, batches, features, changes):
    """With instructions about images and without, with activation checkpointing and without."""
    model = adapt(llama, small_adapter(**changes), feature_width=16)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.adapter.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    about_images = {**batches, "instruction": batches["instruction"] | {"features": features[1:]}}
    for given in (batches, about_images, {"instruction": batches["instruction"]}):
        losses, expected = step(of_two_passes, model, given)
        found, gradients = step(of_one_pass, model, given)
        assert found == losses and gradients.keys() == expected.keys()
        torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-6)
    recompute_blocks(llama)
    _, again = step(of_one_pass, model, given)
    assert all(torch.equal(gradients[name], again[name]) for name in gradients)


def test_each_block_is_called_once_and_each_loss_moves_its_own_group(adapted, batches):
    called = []
    for index, block in enumerate(adapted.llama.layers):
        block.register_forward_pre_hook(lambda *_, index=index: called.append(index))
    losses = of_one_pass(adapted, batches)
    assert called == [0, 1, 2, 3, 4, 5]
    for task, other in (("caption", "instruction"), ("instruction", "caption")):
        moved, idle = (list(adapted.adapter[group].parameters()) for group in (task, other))
        gradients = torch.autograd.grad(losses[task], moved + idle, retain_graph=True, allow_unused=True)
        assert all(gradient is not None for gradient in gradients[: len(moved)])
        assert all(gradient is None for gradient in gradients[len(moved) :])


STEPS = 2 * 2
SHORT = ("trainer.max_steps=2", "trainer.limit_val_batches=0", "trainer.accumulate_grad_batches=2")


def assert_alike(folder, other):
    rows, expected = metrics(folder), metrics(other)
    assert len(rows) == len(expected) == 2 and rows[0]["train/caption_gradient_norm"]
    for row, one in zip(rows, expected, strict=True):
        for column in row:
            assert float(row[column] or 0) == pytest.approx(float(one[column] or 0), abs=1e-5), (row["step"], column)
    weights, others = adapter(folder), adapter(other)
    off = {name: (value - others[name]).abs() > 1e-5 for name, value in weights.items() if "wk.bias" not in name}
    assert sum(int(where.sum()) for where in off.values()) < 1e-3 * sum(where.numel() for where in off.values())


def test_a_run_of_lavin_is_that_of_two_passes(run, tmp_path):
    """Image tokens, mixtures and an encoder that trains along; nothing is dropped there, so nothing is drawn."""
    one, two = (run(f"{word}", *SHORT, f"one_pass={word}", experiment="family/lavin") for word in ("true", "false"))
    assert_alike(one, two)


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    base = ["experiment=demo", *settings(world), *SHORT, "optim.caption.clip=0.5"]
    run(folder / "one", base)
    together = [*base, "data.batch_size={caption: 4, instruction: 2}", "trainer.devices=2"]
    run_in_processes(
        [
            (folder / "ddp", [*together, "strategy=ddp", "one_pass=true"], None),
            (folder / "fsdp2", [*together, "strategy=fsdp2", "one_pass=true"], None),
            (folder / "two_passes", [*together, "strategy=fsdp2"], None),
        ]
    )
    return folder


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_processes_train_as_one_with_two_passes(runs, name):
    assert_alike(runs / name, runs / "one")


def test_half_is_gathered(runs, config):
    """Of the blocks; what is outside of them is gathered once a step however many passes there are."""
    llama = load_llama(config().llama.path)
    outside = sum(p.numel() for name, p in llama.named_parameters() if not name.startswith("layers."))
    trained = json.loads((runs / "one" / "parameters.json").read_text())["trainable"]
    one, two = (
        json.loads((runs / f"{name}_0.json").read_text())["gathered"] - STEPS * 4 * (outside + trained)
        for name in ("fsdp2", "two_passes")
    )
    assert 0 < one < 0.55 * two
