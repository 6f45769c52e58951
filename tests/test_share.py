"""The command line of adapters that travel: convert, export, push, pull."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lav2 import load
from lav2.adapter import adapt, load_adapter, save_adapter
from lav2.adapter.released import convert
from lav2.llama import load_llama
from lav2.share import main
from tests.adapter import authors
from tests.adapter.hub_server import Hub

ROOT = Path(__file__).parents[1]
BASE = ROOT / "lav2" / "demo" / "weights" / "llama"


def share(*arguments) -> None:
    """As ``python -m lav2.share``, in this process."""
    main([str(argument) for argument in arguments])


@pytest.fixture
def released(tmp_path) -> Path:
    """A released language adapter for the embedded LLaMA."""
    shape = load_llama(BASE).config
    sizes = {"size": shape.hidden_size, "layers": shape.num_layers, "heads": shape.num_heads, "inner": 1}
    stored = authors.fill(authors.language(**sizes, last=3, length=4))
    torch.save(stored, tmp_path / "released.pth")
    return tmp_path / "released.pth"


def test_convert(released, tmp_path):
    share("convert", released, tmp_path / "one", "--base", BASE, "--prompt-length", 4, "--gate-activation", "none")
    convert(released, tmp_path / "two", BASE, prompt_length=4, gate_activation="none")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert load(tmp_path / "one", device="cpu").generate(["What is red?"], max_new_tokens=3)


def test_export(tmp_path, tokens):
    base = load_llama(BASE)
    model = adapt(base, {"visual_layers": 1, "prompt_layers": 0, "prompt_length": 0, "bias": False}, feature_width=8)
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        expected = model(tokens)
    about = {"base_path": str(BASE), "tokenizer": "/gone/tokenizer.model"}  # then it is the base's
    save_adapter(tmp_path / "run" / "adapter", model, **about)
    share("export", tmp_path / "run", tmp_path / "plain", "--dtype", "float32", "--text-only")
    plain = load_llama(tmp_path / "plain")
    with torch.no_grad():
        assert torch.allclose(plain(tokens), expected, atol=1e-4)
        assert not torch.allclose(load_llama(BASE)(tokens), expected, atol=1e-2)
    share("export", tmp_path / "run", tmp_path / "half", "--text-only")
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.6 * (
        tmp_path / "plain" / "model.safetensors"
    ).stat().st_size


def test_push_and_pull(released, tmp_path, monkeypatch, capsys):
    convert(released, tmp_path / "adapter", BASE, prompt_length=4)
    hub = Hub()
    hub.take_the_place(monkeypatch, tmp_path / "cache")
    try:
        share("push", tmp_path / "adapter", "me/mine", "--private")
        assert f"{hub.endpoint}/me/mine/commit/" in capsys.readouterr().out and hub.private == {"me/mine"}
        share("pull", "me/mine", tmp_path / "pulled")
        assert str(tmp_path / "pulled") in capsys.readouterr().out
        refused("me/missing is not at", capsys, "pull", "me/missing", tmp_path / "missing")
    finally:
        hub.close()
    llama = load_llama(BASE)
    first, second = (load_adapter(tmp_path / name, llama).adapter.state_dict() for name in ("adapter", "pulled"))
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


def refused(message: str, capsys, *arguments) -> None:
    """One line on stderr and exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        share(*arguments)
    error = capsys.readouterr().err
    assert left.value.code == 2 and message in error and error.startswith("error: ") and error.count("\n") == 1


def test_mistakes_get_one_line(released, tmp_path, capsys):
    """Prompts are refused before the base, which is not even there, is read."""
    convert(released, tmp_path / "made", BASE, prompt_length=4)
    plain = tmp_path / "plain"
    refused("prompts cannot be folded", capsys, "export", tmp_path / "made", plain, "--base", "/nowhere")
    refused("holds a model already", capsys, "export", tmp_path / "made", BASE)
    refused("no adapter at", capsys, "export", tmp_path, plain)
    base, folded = tmp_path / "base.gguf", tmp_path / "folded"
    base.touch()
    save_adapter(folded, adapt(load_llama(BASE), {"visual_layers": 0, "prompt_layers": 0}), tokenizer=str(base))
    refused("a tokenizer in a file of its own", capsys, "export", folded, plain, "--base", base)
    refused("no LLaMA at /nowhere", capsys, "convert", released, plain, "--base", "/nowhere", "--prompt-length", 4)
    refused("no released adapter at", capsys, "convert", tmp_path / "none.pth", plain, "--base", BASE)
    assert not plain.exists()


def test_help_comes_without_waiting_for_torch():
    code = "import sys; from lav2.share import main\ntry: main(['convert', '--help'])\nexcept SystemExit: "
    code += "assert not {'torch', 'open_clip'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--vision-weights" in done.stdout, done.stderr
