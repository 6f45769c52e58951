"""What is added to the frozen language model (V2 paper, sec 3-4)."""

from lav2.adapter.config import AdapterConfig, LoraConfig, ProjectorConfig
from lav2.adapter.folder import load_adapter, read_adapter_config, save_adapter
from lav2.adapter.model import AdaptedLlama, adapt
from lav2.adapter.ownership import owned, owner, parameter_summary, trained_groups

__all__ = [
    "AdaptedLlama",
    "AdapterConfig",
    "LoraConfig",
    "ProjectorConfig",
    "adapt",
    "load_adapter",
    "owned",
    "owner",
    "parameter_summary",
    "read_adapter_config",
    "save_adapter",
    "trained_groups",
]
