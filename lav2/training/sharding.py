"""FSDP2: every process holds a share of each weight and gathers a block when it is its turn.

The engine is PyTorch's ``fully_shard``, reached through Lightning's ``ModelParallelStrategy``. Here stand what is
sharded, how the base weights get to where they belong, and checkpoints: they hold the adapter whole, in the form that a
run of one process writes, so that a run can go on with another number of processes or under another strategy.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from lav2.adapter import AdaptedLlama
from lav2.llama import Llama
from lav2.llama.checkpoint import Checkpoint
from lav2.llama.loading import digest, first_row, read_tensor, with_progress


class Sharding(ModelParallelStrategy):
    """FSDP2 over all devices.

    Each block of the language model is a group of its own, gathered in the forward and again in the backward pass. The
    adapter, a thousandth of the base, is gathered once a step, with the embeddings and the head: the loss calls the
    head as often as a process has labels for, which no two processes do alike.

    Args:
        offload: keep weights, gradients and the optimizer in the host's memory; a block visits the GPU when it is its
            turn.
    """

    def __init__(self, offload: bool = False):
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.offload = offload

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def _get_process_group_backend(self) -> str:
        if self.offload and self.root_device.type == "cuda":
            return "cuda:nccl,cpu:gloo"  # the norms of gradients that lie in the host's memory
        return super()._get_process_group_backend()

    def model_to_device(self) -> None:
        if not self.offload:
            super().model_to_device()

    def shard(self, model: AdaptedLlama, checkpoint: Checkpoint | None) -> None:
        """Shard ``model`` and read this process's share of what is on the meta device from ``checkpoint``."""
        if isinstance(model.llama.norm.weight, DTensor):  # Lightning asks again when a run is resumed
            return
        policy = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if self.offload else OffloadPolicy()
        mesh = self.device_mesh["data_parallel"]
        for block in model.llama.layers:
            fully_shard(block, mesh=mesh, offload_policy=policy)
        fully_shard(model, mesh=mesh, offload_policy=policy)
        register_fsdp_forward_method(model, "hidden")
        register_fsdp_forward_method(model, "hidden_of_each")
        if checkpoint is not None:
            read_shares(model.llama, checkpoint, torch.device("cpu") if self.offload else self.root_device)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The adapter's tensors, whole, on every process; the base is in no checkpoint, and is never gathered."""
        state = self.lightning_module.model.adapter.state_dict()
        return {f"model.adapter.{name}": whole(value).cpu() for name, value in state.items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state with whole tensors."""
        return in_tensors(optimizer.state_dict(), lambda value: whole(value).cpu())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's share of every tensor in ``checkpoint``, which the module has checked."""
        parameters = dict(self.lightning_module.named_parameters())
        for name, value in checkpoint["state_dict"].items():
            parameters[name].data.copy_(share(value, parameters[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            raw = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
            parameters = [parameter for group in raw.param_groups for parameter in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            for number, parameter in zip(numbers, parameters, strict=True):
                moments = state["state"].get(number, {})
                for name, value in moments.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim():
                        moments[name] = share(value, parameter)
            raw.load_state_dict(state)


def skeleton(checkpoint: Checkpoint, dtype: torch.dtype) -> Llama:
    """The LLaMA in ``checkpoint`` on the meta device, but for its norms, which an adapter copies; they are small."""
    with torch.device("meta"):
        llama = Llama(checkpoint.config).to(dtype)
    norms = {name: torch.empty(shape, dtype=dtype) for name, shape in checkpoint.shapes.items() if len(shape) == 1}
    for name, norm in norms.items():
        read_tensor(checkpoint, name, norm)
    llama.load_state_dict(norms, strict=False, assign=True)
    return llama.requires_grad_(False).eval()


def read_shares(llama: Llama, checkpoint: Checkpoint, device: torch.device) -> None:
    """Give the sharded ``llama`` this process's rows of every weight that is on the meta device, and no other.

    Raises:
        UserError: as :func:`lav2.llama.loading.read_tensor`.
    """
    parameters = dict(llama.named_parameters())
    shares, rows = {}, {}
    for name in with_progress(checkpoint, llama.norm.weight.dtype):
        parameter = parameters[name]
        if parameter.is_meta:
            mine = parameter.to_local()
            per_process = -(-len(parameter) // parameter.device_mesh.size())  # as torch.chunk shares out
            start = min(len(parameter), parameter.device_mesh.get_local_rank() * per_process)
            local = torch.empty(mine.shape, dtype=mine.dtype, device=device)
            read_tensor(checkpoint, name, local, slice(start, start + len(mine)))
            mesh, placements = parameter.device_mesh, parameter.placements
            shares[name] = DTensor.from_local(
                local, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
            )
        if parameter.device_mesh.get_local_rank() == 0:
            rows[name] = first_row(checkpoint[name])
    llama.load_state_dict(shares, strict=False, assign=True)
    if rows:  # the first process has the first rows, and writes the adapter folder
        llama.fingerprint = digest(rows)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, whole; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole ``tensor``, sharded as ``like`` is; nothing is sent."""
    if not isinstance(like, DTensor):
        return tensor
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def in_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``tree`` of dicts and lists with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: in_tensors(value, change) for key, value in tree.items()}
    return [in_tensors(value, change) for value in tree] if isinstance(tree, list) else tree
