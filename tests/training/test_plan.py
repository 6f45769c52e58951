"""What the plan says beside what torch's allocator hands out while a real model trains."""

import ctypes
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing import start_processes

from benchmarks.measure import begin_peak, most_allocated, resident
from lav2.adapter import AdaptedLlama, AdapterConfig, owned, trained_groups
from lav2.errors import UserError
from lav2.llama import Llama, LlamaConfig
from lav2.training.loss import response_loss
from lav2.training.optimizers import TaskOptim, TaskOptimizers
from lav2.training.plan import Planner, Setting, moments
from lav2.training.recomputation import recompute_blocks
from lav2.training.run import train
from lav2.training.sharding import Sharding
from tests.training.processes import free_port

SHAPE = LlamaConfig(
    vocab_size=600, hidden_size=96, num_layers=7, num_heads=4, num_kv_heads=2, intermediate_size=256, max_length=256
)
SMALL = {"projector": {"width": 32, "blocks": 1, "heads": 2}, "visual_length": 6, "prompt_length": 5}
ADAPTERS = {
    "v2": {**SMALL, "visual_layers": 3, "prompt_layers": 3},
    "v2 as in the paper": SMALL,
    "v1": {
        **SMALL,
        **{"fusion": "late", "visual_layers": 0, "visual_length": 5, "prompt_layers": 4, "ownership": "shared"},
        **{"bias": False, "scale": "none", "norms": "none"},
    },
    "lora": {**SMALL, "bias": False, "scale": "none", "lora": {"rank": 4}},
}
ROWS, LENGTHS, IMAGE_TOKENS, WIDTH = {"caption": 4, "instruction": 3}, {"caption": 48, "instruction": 128}, 20, 24
OPTIM = TaskOptim(partial(torch.optim.AdamW, lr=1e-4))


def batch(task: str) -> dict[str, torch.Tensor]:
    tokens = torch.randint(3, 600, (ROWS[task], LENGTHS[task]))
    features = {"features": torch.randn(ROWS[task], IMAGE_TOKENS, WIDTH)} if task == "caption" else {}
    return {"tokens": tokens, "labels": tokens, **features}


def train_two_steps(adapter: dict, dtype: torch.dtype, tasks: list[str], recompute: bool) -> None:
    model = AdaptedLlama(Llama(SHAPE).to(dtype), AdapterConfig.from_dict(adapter), WIDTH).train()
    groups = trained_groups(model, tasks, model.config.ownership)
    for group in ("caption", "instruction"):
        for parameter in owned(model, group).values():
            parameter.requires_grad_(group in groups)
    if recompute:
        recompute_blocks(model.llama)
    optimizer = TaskOptimizers({group: OPTIM.build(group, owned(model, group)) for group in groups})
    for _ in range(2):
        loss = sum(response_loss(model, batch(task), task) for task in tasks)
        optimizer.zero_grad()  # where Lightning does so
        loss.backward()
        optimizer.step()
        del loss


JOINT = ["caption", "instruction"]


@pytest.mark.parametrize(
    "adapter, dtype, tasks, recompute",
    [
        ("v2", torch.float32, JOINT, False),
        ("v2 as in the paper", torch.bfloat16, JOINT, True),
        ("v1", torch.bfloat16, ["instruction"], False),
        pytest.param("v1", torch.float32, JOINT, True, marks=pytest.mark.slow),
        pytest.param("v2", torch.bfloat16, ["caption"], False, marks=pytest.mark.slow),
        pytest.param("lora", torch.float32, JOINT, True, marks=pytest.mark.slow),
        pytest.param("lora", torch.bfloat16, JOINT, False, marks=pytest.mark.slow),
    ],
)
def test_one_process_takes_what_the_plan_says(adapter, dtype, tasks, recompute):
    plan = planner(SHAPE, ADAPTERS[adapter], dtype, tasks).memory(Setting("single", 1, recompute, False, None, ROWS))
    peak = most_allocated(partial(train_two_steps, ADAPTERS[adapter], dtype, tasks, recompute))
    assert sum(plan.values()) == pytest.approx(peak, rel=0.05)


def planner(shape: LlamaConfig, adapter: dict, dtype: torch.dtype, tasks: list[str]) -> Planner:
    with torch.device("meta"):
        model = AdaptedLlama(Llama(shape).to(dtype), AdapterConfig.from_dict(adapter), WIDTH)
    lengths = {task: LENGTHS[task] for task in tasks}
    return Planner(model, WIDTH, IMAGE_TOKENS, lengths, frozenset({"caption"}), moments(OPTIM))


LARGER = replace(SHAPE, vocab_size=4000, hidden_size=768, num_layers=8, num_kv_heads=4, intermediate_size=2048)


def sharded_steps(rank: int, port: int, folder: str) -> None:
    """Two FSDP2 steps in one of two processes; writes the most resident memory above what the process began with."""
    ctypes.CDLL(None).mallopt(-3, 65536)  # larger blocks go back to the system at once
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    strategy = Sharding()
    strategy._device_mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    model = AdaptedLlama(Llama(replace(LARGER, num_layers=3)), AdapterConfig.from_dict(SMALL), WIDTH).train()
    optimizer = TaskOptimizers({group: OPTIM.build(group, owned(model, group)) for group in JOINT})
    sum(response_loss(model, batch(task), task) for task in JOINT).backward()
    optimizer.step()  # what is loaded once is loaded now
    del model, optimizer
    start = resident("VmRSS")
    model = AdaptedLlama(Llama(LARGER), AdapterConfig.from_dict(SMALL), WIDTH).train()
    strategy.shard(model, None)
    optimizer = TaskOptimizers({group: OPTIM.build(group, owned(model, group)) for group in JOINT})
    begin_peak()
    for _ in range(2):
        loss = sum(response_loss(model, batch(task), task) for task in JOINT)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        del loss
    (Path(folder) / str(rank)).write_text(str(resident("VmHWM") - start))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_under_fsdp2_take_what_the_plan_says(tmp_path):
    """By the resident memory of each, which FSDP2's own buffers are in."""
    plan = planner(LARGER, SMALL, torch.float32, JOINT).memory(Setting("fsdp2", 2, False, False, None, ROWS))
    start_processes(sharded_steps, (free_port(), str(tmp_path)), nprocs=2)
    for rank in ("0", "1"):
        peak = int((tmp_path / rank).read_text())
        print(f"planned {sum(plan.values()) / peak:.3f} of the measured {peak / 1e6:.0f} MB")
        assert sum(plan.values()) == pytest.approx(peak, rel=0.15), plan


def test_the_plan_of_65b_needs_no_weights_and_no_gpus(config, tmp_path, capsys):
    settings = "strategy=fsdp2", "trainer.devices=8", "plan=true", "activation_checkpointing=true"
    batch = "data.batch_size={caption: 2, instruction: 1}"
    assert train(config(*settings, batch, experiment="v2_65b"), tmp_path / "run") == {}
    printed = " ".join(capsys.readouterr().out.split())
    assert "base weights, 1/8 │ 16.32" in printed  # 65,285,660,672 weights of 2 bytes
    assert "fits into 40 GB, with 10% left over │ yes" in printed
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_says_what_to_change_in_words_of_the_command_line():
    plan = planner(SHAPE, ADAPTERS["v2"], torch.float32, JOINT)
    words = [
        "activation_checkpointing=true",
        "strategy=fsdp2",
        "'data.batch_size={caption: 2, instruction: 1}' trainer.accumulate_grad_batches=8",
        "strategy.strategy.offload=true",
    ]
    setting = Setting("ddp", 4, False, False, None, {"caption": 8, "instruction": 4}, accumulate=2)
    assert list(plan.changes(setting)) == [" ".join(words[: count + 1]) for count in range(4)]
    setting = Setting("single", 1, True, False, None, {"caption": 1, "instruction": 1})
    assert list(plan.changes(setting)) == ["llama.quantize=nf4"]


@pytest.mark.parametrize(
    "experiment, override",
    [
        ("lavin_scienceqa_7b", "strategy=single"),
        ("v2_7b", "strategy=deepspeed_zero3"),
        ("v2_7b", "trainer.devices=-1"),
    ],
)
def test_what_cannot_be_planned_is_one_line(config, tmp_path, experiment, override):
    with pytest.raises(UserError, match="plan=true"):
        train(config("plan=true", override, experiment=experiment), tmp_path)
