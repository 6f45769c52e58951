"""The composite optimizer against the real ones on their own; the loss's edges."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from lav2.adapter import owned
from lav2.data.tokens import IGNORE
from lav2.training.loss import response_loss
from lav2.training.module import JointModule
from lav2.training.optimizers import TaskOptim, TaskOptimizers, schedule

SETTINGS = {
    "caption": TaskOptim(partial(torch.optim.AdamW, lr=1e-2), weight_decay=0.1, warmup=0.2, clip=1.0),
    "instruction": TaskOptim(partial(torch.optim.SGD, lr=3e-2, momentum=0.9), warmup=0.5, final=0.1, clip=0.5),
}


def parameters():
    torch.manual_seed(0)
    return {task: [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))] for task in SETTINGS}


def gradients(step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator) for shape in ((3, 2), (4,))]


def named(matrix_and_vector):
    return dict(
        zip(
            ("adapter.caption.projector.queries", "adapter.caption.projector.input.bias"),
            matrix_and_vector,
            strict=True,
        )
    )


def composite(params):
    return TaskOptimizers({task: SETTINGS[task].build(task, named(params[task])) for task in SETTINGS})


def advance(optimizer, scheduler, params, steps):
    for step in steps:
        for group in params.values():
            for parameter, gradient in zip(group, gradients(step), strict=True):
                parameter.grad = gradient.clone()
        optimizer.step()
        scheduler.step()


def test_equals_each_optimizer_on_its_own():
    """Each task keeps its own class, learning rate, decay, warm-up and cosine."""
    params = parameters()
    optimizer = composite(params)
    advance(optimizer, schedule(optimizer, SETTINGS, 10), params, range(10))
    for task in SETTINGS:
        alone = {task: parameters()[task]}
        one = SETTINGS[task].build(task, named(alone[task]))
        factor = partial(SETTINGS[task].factor, total=10)
        advance(one, torch.optim.lr_scheduler.LambdaLR(one, factor), alone, range(10))
        assert all(torch.equal(*pair) for pair in zip(params[task], alone[task], strict=True))


@pytest.mark.parametrize("idle", [(), ("caption",)], ids=str)
def test_its_groups_may_take_their_steps_one_after_another(idle):
    """As DeepSpeed lets them, with the gradients of all there; a task that a step does not train stays where it is."""
    at_once, in_turn, untouched = parameters(), parameters(), parameters()
    for params, turns in ((at_once, [slice(None)]), (in_turn, [slice(n, n + 1) for n in range(4)])):
        optimizer = composite(params)
        groups = optimizer.param_groups
        for step in range(3):
            for members in params.values():
                for parameter, gradient in zip(members, gradients(step), strict=True):
                    parameter.grad = gradient
            optimizer.begin()
            optimizer.note_trained(SETTINGS.keys() - (idle if step else ()))  # with momentum from the first step
            if step == 1:
                untouched = copy.deepcopy(params)
            for turn in turns:
                optimizer.param_groups = groups[turn]
                optimizer.step()
    for task in SETTINGS:
        assert all(torch.equal(*pair) for pair in zip(at_once[task], in_turn[task], strict=True))
        moved = [not torch.equal(*pair) for pair in zip(in_turn[task], untouched[task], strict=True)]
        assert not any(moved) if task in idle else all(moved)


def test_its_state_survives_saving():
    params = parameters()
    optimizer = composite(params)
    scheduler = schedule(optimizer, SETTINGS, 10)
    advance(optimizer, scheduler, params, range(4))
    saved = {task: [p.detach().clone() for p in group] for task, group in params.items()}
    state, schedule_state = copy.deepcopy(optimizer.state_dict()), scheduler.state_dict()
    advance(optimizer, scheduler, params, range(4, 10))

    again = {task: [nn.Parameter(p) for p in group] for task, group in saved.items()}
    resumed = composite(again)
    resumed_schedule = schedule(resumed, SETTINGS, 10)
    resumed.load_state_dict(state)
    resumed_schedule.load_state_dict(schedule_state)
    advance(resumed, resumed_schedule, again, range(4, 10))
    for task in SETTINGS:
        assert all(torch.equal(*pair) for pair in zip(params[task], again[task], strict=True))


def test_gates_have_a_rate_of_their_own(adapted):
    built = TaskOptim(partial(torch.optim.AdamW, lr=1e-3), gate_rate=10).build("caption", owned(adapted, "caption"))
    rates = {id(p): group["lr"] for group in built.param_groups for p in group["params"]}
    for name, parameter in owned(adapted, "caption").items():
        assert rates[id(parameter)] == pytest.approx(1e-2 if ".gates." in name else 1e-3)


def test_vectors_are_never_decayed():
    """Gates, biases, scales and norms: a zero gradient leaves them where they are, matrices shrink."""
    params = parameters()
    before = {task: [p.detach().clone() for p in group] for task, group in params.items()}
    optimizer = composite(params)
    for group in params.values():
        for parameter in group:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    matrix, vector = params["caption"]
    assert torch.equal(vector, before["caption"][1]) and not torch.equal(matrix, before["caption"][0])


@pytest.mark.parametrize("step, expected", [(0, 0.5), (1, 1.0), (2, 1.0), (6, 0.55), (10, 0.1), (99, 0.1)])
def test_warm_up_and_cosine(step, expected):
    assert TaskOptim(torch.optim.SGD, warmup=0.2, final=0.1).factor(step, 10) == pytest.approx(expected)


def test_each_task_is_clipped_by_itself(adapted, monkeypatch):
    """A huge caption gradient must not shrink the instruction group's step."""
    module = JointModule(adapted, SETTINGS)
    monkeypatch.setattr(module, "log", lambda *_: None)
    optimizer = TaskOptimizers({task: SETTINGS[task].build(task, owned(adapted, task)) for task in SETTINGS})
    for task, size in (("caption", 1e6), ("instruction", 1e-6)):
        for parameter in optimizer.parameters(task):
            parameter.grad = torch.full_like(parameter, size)
    module.configure_gradient_clipping(optimizer)

    def norm(task):
        return torch.cat([p.grad.flatten() for p in optimizer.parameters(task)]).norm()

    assert norm("caption") == pytest.approx(1.0, rel=1e-4)
    assert torch.equal(optimizer.parameters("instruction")[0].grad.unique(), torch.tensor([1e-6]))


def test_the_loss_is_the_mean_over_labelled_tokens(adapted, tokens, features):
    labels = torch.full_like(tokens, IGNORE)
    labels[0, 3:6], labels[2, 7:] = tokens[0, 3:6], tokens[2, 7:]
    loss = response_loss(adapted, {"tokens": tokens, "labels": labels, "features": features}, "caption")
    log_probabilities = adapted(tokens, features).log_softmax(-1)
    expected = [-log_probabilities[row, i - 1, tokens[row, i]] for row, i in ((0, 3), (0, 4), (0, 5), (2, 7), (2, 8))]
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_a_batch_without_labels_gives_zero_loss_and_zero_gradients(adapted, tokens, features):
    batch = {"tokens": tokens, "labels": torch.full_like(tokens, IGNORE), "features": features}
    loss = response_loss(adapted, batch, "caption")
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in owned(adapted, "caption").values())
