"""Which strategies fit a machine and a config; DeepSpeed's, as Lightning drives it; the end of launched processes."""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any

from lightning import Trainer
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy
from omegaconf import DictConfig

from lav2.errors import UserError


class DeepSpeed(DeepSpeedStrategy):
    """Lightning's strategy for DeepSpeed's ZeRO with our optimizer; checkpoints are DeepSpeed's own, without the base.

    Args:
        stage: 2 shards gradients and optimizer over the devices, 3 the weights as well.
        offload: keep what is sharded in the host's memory.

    Raises:
        UserError: DeepSpeed is not installed.
    """

    def __init__(self, stage: int, offload: bool = False):
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError('strategy: DeepSpeed is not installed: pip install -e ".[deepspeed]"')
        super().__init__(config=deepspeed_config(stage, offload), exclude_frozen_parameters=True)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The adapter's tensors, whole, on every process."""
        import deepspeed

        adapter = self.lightning_module.model.adapter
        with deepspeed.zero.GatheredParameters(list(adapter.parameters()), enabled=self.zero_stage_3):
            state = {name: value.detach().cpu().clone() for name, value in adapter.state_dict().items()}
        return {f"model.adapter.{name}": value for name, value in state.items()}


def deepspeed_config(stage: int, offload: bool = False) -> dict:
    """What DeepSpeed is told; batch sizes and accumulation Lightning adds."""
    # the buffers are for the adapter's gradients alone, so they can be far smaller than by default, which is 2 GB each
    zero = {"stage": stage, "reduce_bucket_size": 20_000_000, "allgather_bucket_size": 20_000_000}
    if offload:
        zero |= {"offload_optimizer": {"device": "cpu"}} | ({"offload_param": {"device": "cpu"}} if stage == 3 else {})
    return {
        "train_micro_batch_size_per_gpu": 1,  # for its own log of throughput alone
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # ours: one of torch's for each task
        "zero_force_ds_cpu_optimizer": False,
    }


def strategy_name(strategy: DictConfig) -> str:
    """``single``, ``ddp``, ``fsdp2`` or ``deepspeed``, by what the config group holds."""
    engine = strategy.strategy
    if isinstance(engine, str):
        return {"auto": "single"}.get(engine, engine)
    return {"DeepSpeed": "deepspeed", "Sharding": "fsdp2"}.get(engine._target_.rpartition(".")[2], "ddp")


def strategy_problems(
    strategy: DictConfig, clips: Mapping[str, float | None], quantize: str | None, on_nan: str
) -> Iterator[str]:
    """What the strategy cannot do of what the config asks; ``clips`` are the tasks' largest norms."""
    name = strategy_name(strategy)
    if name == "deepspeed":
        for task, clip in clips.items():
            if clip is not None:
                yield f"DeepSpeed has one norm for all parameters; set optim.{task}.clip=null, or strategy=fsdp2"
        if on_nan == "skip":
            yield "on_nan=skip: under DeepSpeed no step can be skipped; set on_nan=stop, or strategy=fsdp2"
    if name in ("fsdp2", "deepspeed") and quantize is not None:
        yield f"llama.quantize={quantize} needs a base that each process holds whole: strategy=single or ddp"


def device_problems(strategy: DictConfig, trainer: Trainer) -> Iterator[str]:
    """Whether there are as many devices as the config asks for, and a strategy for so many."""
    name, count = strategy_name(strategy), trainer.num_devices * trainer.num_nodes
    if name == "deepspeed" and not isinstance(trainer.accelerator, CUDAAccelerator):
        yield "DeepSpeed, as Lightning drives it, runs on CUDA GPUs alone; choose strategy=fsdp2 or ddp"
    if name == "single" and count > 1:
        yield (
            f"strategy=single is one process, trainer.devices gives {count}; "
            "choose strategy=ddp or fsdp2, or trainer.devices=1"
        )
    cores = os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > cores:
        yield f"trainer.devices gives {trainer.num_devices} processes; this machine has no GPU and {cores} CPU cores"


def end_launched(trainer: Trainer) -> None:
    """Kill the processes that this one has started here, before it leaves for a reason that may be its own alone, such
    as a full disk: they would wait for it in a collective, which heeds no gentler signal, and then fail in their own
    words. Those that torchrun, Slurm or another node has started are theirs to end.
    """
    started = getattr(trainer.strategy.launcher, "procs", [])
    launched = started.copy()
    started.clear()  # Lightning's observer kills this process when one of those has failed
    for process in launched:
        process.kill()
        process.wait()
