"""What this machine has: files that installed packages bring, and the data type its processor is made for."""

import importlib.util
import platform
from pathlib import Path

from lav2.errors import UserError


def package_file(package: str, pattern: str, install: str) -> str:
    """The path of the file in an installed package that fits ``pattern``; the package itself is not imported.

    Args:
        install: what to give pip for it, for the message.

    Raises:
        UserError: the package or its file is not there.
    """
    found = importlib.util.find_spec(package)
    for folder in found.submodule_search_locations or () if found else ():
        for path in sorted(Path(folder).glob(pattern)):
            return str(path)
    raise UserError(f"the package {package} is not installed: pip install {install}, or name another file")


def fast_dtype() -> str:
    """``bfloat16`` where the GPU, or without one the CPU, multiplies it by itself, else ``float32``."""
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if platform.system() != "Linux":
        return "float32"
    flags = Path("/proc/cpuinfo").read_text()  # avx512_bf16, amx_bf16; on ARM bf16
    return "bfloat16" if "bf16" in flags else "float32"
