"""What a run folder holds under which name. Imports nothing heavy: a wrong folder is told of at once."""

from pathlib import Path

from lav2.errors import UserError

CONFIG, RECORD = "config.yaml", "run.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_folder(folder: str | Path, given: str = "run") -> Path:
    """The adapter folder that ``folder`` is, or that it holds as a run folder; ``given`` is the setting that names it.

    Raises:
        UserError: there is none, or one without weights.
    """
    found = Path(folder) if (Path(folder) / ADAPTER_CONFIG).is_file() else Path(folder) / "adapter"
    if not (found / ADAPTER_WEIGHTS).is_file():
        raise UserError(
            f"{given}={folder}: no adapter there ({found / ADAPTER_WEIGHTS} is missing); name a run folder or an "
            "adapter folder"
        )
    return found
