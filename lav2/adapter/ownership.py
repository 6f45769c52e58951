"""Who owns a parameter: the one table behind joint training with disjoint parameters (V2 paper, sec 4.2).

An adapter is two modules, ``caption`` and ``instruction``. A parameter is owned by the task whose module holds it, and
everything else is frozen. Methods whose tasks share all parameters (V1, LaVIN) keep the two groups and let every task
train both. Freezing, optimizers, gradient routing, checkpoints and the printed table all ask here.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from lav2.llama.quantization import stored_bytes
from lav2.tasks import TASKS

FROZEN = "frozen"


def used(parameter: Tensor, train: bool) -> Tensor:
    """The parameter as a forward pass uses it: without a gradient where the pass's task does not own it."""
    return parameter if train else parameter.detach()


def trains(owner: str, task: str | None, ownership: str = "disjoint") -> bool:
    """Whether a forward pass for ``task`` gives gradients to ``owner``'s parameters; ``None`` is a pass for both.

    With ``ownership="shared"`` every task moves every parameter, as in V1; the groups keep their optimizers.
    """
    return ownership == "shared" or task in (None, owner)


def owner(name: str) -> str:
    """``caption``, ``instruction`` or ``frozen`` for a parameter of an adapted model, by its full name."""
    root, _, rest = name.partition(".")
    group = rest.partition(".")[0]
    return group if root == "adapter" and group in TASKS else FROZEN


def owned(model: nn.Module, task: str) -> dict[str, nn.Parameter]:
    """The parameters of ``model`` (an adapted model) that ``task`` trains, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if owner(name) == task}


def trained_groups(model: nn.Module, tasks: Iterable[str], ownership: str = "disjoint") -> list[str]:
    """The groups that training on ``tasks`` moves, of those ``model`` has."""
    return [
        group
        for group in TASKS
        if any(trains(group, task, ownership) for task in tasks) and any(True for _ in owned(model, group))
    ]


def part(name: str) -> str:
    """The part of the method a parameter belongs to, as the table lists it."""
    words = name.split(".")
    if words[0] != "adapter":
        return "image encoder" if words[0] == "encoder" else "language model"
    if words[2] == "projector":
        return "visual projector"
    if "mixture" in words or "mixtures" in words:
        return "mixture, language" if "mixture" in words else "mixture, image encoder"
    if words[-1] == "modality":
        return "modality token"
    if "gate" in words or "gates" in words:
        return "gates"
    if "lora" in words:
        return "LoRA"
    return {"prompt": "prompts", "scale": "scale", "bias": "bias", "weight": "norms"}[words[-1]]


def rows(model: nn.Module) -> Iterator[tuple[str, str, int, int]]:
    """(owner, part, count, bytes) for every part of ``model``, trainable parts first."""
    table: dict[tuple[str, str], list[int]] = {}
    for name, parameter in model.named_parameters():
        row = table.setdefault((owner(name), part(name)), [0, 0])
        row[0] += parameter.numel()
        row[1] += stored_bytes(parameter)
    order = [*TASKS, FROZEN]
    for (who, what), (count, size) in sorted(table.items(), key=lambda item: order.index(item[0][0])):
        yield who, what, count, size


def parameter_summary(model: nn.Module, groups: Iterable[str] = TASKS) -> dict:
    """What ``parameters.json`` says: every part with owner, count and bytes, each owner's total, and the owner of each
    parameter by name. ``trainable`` counts the ``groups`` that train, and ``percent_of_base`` relates it to the frozen
    language model."""
    parts = [{"owner": who, "part": what, "count": count, "bytes": size} for who, what, count, size in rows(model)]
    totals = {who: sum(p["count"] for p in parts if p["owner"] == who) for who in (*TASKS, FROZEN)}
    trainable = sum(totals[group] for group in groups)
    return {
        "parts": parts,
        "groups": {
            who: {"count": totals[who], "bytes": sum(p["bytes"] for p in parts if p["owner"] == who)} for who in totals
        },
        "trainable": trainable,
        "total": sum(totals.values()),
        "percent_of_base": round(100 * trainable / sum(p["count"] for p in parts if p["part"] == "language model"), 4),
        "owners": {name: owner(name) for name, _ in model.named_parameters()},
    }
