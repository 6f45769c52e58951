"""Adapters go to a Hub and come back, over HTTP, from a stand-in on this machine."""

import json
import socket
from pathlib import Path

import pytest
import torch

from lav2 import load
from lav2.adapter import load_adapter, save_adapter
from lav2.adapter.folder import CONFIG, WEIGHTS
from lav2.adapter.hub import find_adapter, portable, pull_adapter, push_adapter
from lav2.errors import UserError
from tests.adapter.hub_server import Hub

EMBEDDED = Path(__file__).parents[2] / "lav2" / "demo" / "weights"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub()
    hub.take_the_place(monkeypatch, tmp_path / "cache")
    yield hub
    hub.close()


@pytest.fixture
def folder(adapted, tmp_path) -> Path:
    """An adapter folder as training leaves it, with where everything was on this machine."""
    about = {
        "base_path": str(tmp_path / "secret" / "llama-7b"),
        "tokenizer": str(tmp_path / "secret" / "llama-7b" / "tokenizer.model"),
        "vision": {"name": "lav2-tiny", "weights": str(tmp_path / "secret" / "vision.pt"), "tokens": "patches"}
        | {"channel_order": "RGB"},
        "vision_fingerprint": "0123",
        "template": "alpaca",
        "caption_prompts": ["Describe the image."],
    }
    save_adapter(tmp_path / "run" / "adapter", adapted, **about)
    return tmp_path / "run" / "adapter"


@pytest.mark.parametrize("pushed", ["the adapter folder", "the run folder"])
def test_there_and_back(hub, folder, adapted, llama, tokens, features, tmp_path, pushed):
    address = push_adapter(folder if pushed == "the adapter folder" else folder.parent, "me/scenes")
    assert address.startswith(f"{hub.endpoint}/me/scenes/commit/") and not hub.private
    assert hub.repos["me/scenes"].keys() == {CONFIG, WEIGHTS, "README.md"}
    pulled = pull_adapter("me/scenes", tmp_path / "pulled")
    assert pulled == tmp_path / "pulled" and not any(path.is_symlink() for path in pulled.iterdir())
    assert torch.equal(load_adapter(pulled, llama)(tokens, features), adapted(tokens, features))


def test_nothing_of_this_machine_goes_along(hub, folder, tmp_path):
    push_adapter(folder, "me/scenes", private=True)
    config = json.loads(hub.repos["me/scenes"][CONFIG])
    assert (config["base_path"], config["tokenizer"]) == ("llama-7b", "tokenizer.model")
    assert config["vision"]["weights"] == "vision.pt"
    assert not any(
        b"secret" in content or str(tmp_path).encode() in content for content in hub.repos["me/scenes"].values()
    )
    unchanged = {key: value for key, value in json.loads((folder / CONFIG).read_text()).items() if key != "vision"}
    assert {key for key in unchanged if config[key] != unchanged[key]} == {"base_path", "tokenizer"}
    assert "me/scenes" in hub.private
    assert portable({"a": ["C:\\Users\\me\\x.pt", "relative/x", 3, None]}) == {"a": ["x.pt", "relative/x", 3, None]}


def test_a_card_is_written_where_there_is_none(hub, folder):
    push_adapter(folder, "me/scenes")
    card = hub.repos["me/scenes"]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: lav2\n") and 'load("me/scenes"' in card and "vision_weights=" in card
    fingerprint = json.loads((folder / CONFIG).read_text())["base"]["fingerprint"]
    assert fingerprint in card and '"prompt_layers": 3' in card
    hub.repos["me/scenes"]["README.md"] = b"edited on the Hub"
    push_adapter(folder, "me/scenes")
    assert hub.repos["me/scenes"]["README.md"] == b"edited on the Hub"
    (folder / "README.md").write_text("my own")
    push_adapter(folder, "me/scenes")
    assert hub.repos["me/scenes"]["README.md"] == b"my own"


def test_load_takes_a_name_on_the_hub(hub, tmp_path, monkeypatch):
    """And a folder of that name, where there is one; what was loaded once can be loaded without the Hub."""
    from lav2.adapter import adapt
    from lav2.llama import load_llama

    monkeypatch.chdir(tmp_path)
    base = EMBEDDED / "llama"
    model = adapt(load_llama(base), {"visual_layers": 0, "prompt_length": 3})
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    about = {"base_path": str(base), "tokenizer": str(base / "tokenizer.model"), "vision": None}
    about |= {"vision_fingerprint": None, "template": "short", "caption_prompts": []}
    save_adapter(tmp_path / "made", model, **about)
    push_adapter(tmp_path / "made", "me/text")
    (tmp_path / "tokenizer.model").write_text("a stranger of the pushed tokenizer's name")
    expected = load(tmp_path / "made", device="cpu").generate(["What is red?"], max_new_tokens=8)
    with pytest.raises(UserError, match="no base model at llama: .*base="):
        load("me/text")
    assert load("me/text", base=base, device="cpu").generate(["What is red?"], max_new_tokens=8) == expected
    hub.repos.clear()
    assert load("me/text", base=base, device="cpu").generate(["What is red?"], max_new_tokens=8) == expected
    with pytest.raises(UserError, match="no folder me/other here, and from the Hub: me/other is not at http"):
        load("me/other", base=base)
    (tmp_path / "me" / "text").mkdir(parents=True)
    assert find_adapter("me/text") == Path("me/text")
    for path in ("nowhere", "/no/where", "./me/x", "a/b/c"):
        assert find_adapter(path) == Path(path)  # only org/name asks the Hub


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_what_goes_wrong_is_one_clear_line(hub, folder, tmp_path):
    away = f"http://127.0.0.1:{unused_port()}"
    hub.forbidden.add("them/theirs")
    hub.repos |= {"me/other": {"README.md": b""}, "me/peft": {CONFIG: b'{"peft_type": "LORA"}', WEIGHTS: b""}}
    (tmp_path / "empty").mkdir()
    tried = {
        f"cannot reach me/scenes at {away}: .*refused": lambda: push_adapter(folder, "me/scenes", endpoint=away),
        f"cannot reach me/else at {away}: .*refused": lambda: pull_adapter("me/else", endpoint=away),
        "me/none is not at .*check the name, and log in": lambda: pull_adapter("me/none"),
        "no rights at .* for them/theirs": lambda: push_adapter(folder, "them/theirs"),
        "'me/a b' is no name on the Hub": lambda: push_adapter(folder, "me/a b"),
        "me/other at .* has no such revision": lambda: pull_adapter("me/other", revision="v2"),
        "me/other is no adapter": lambda: pull_adapter("me/other"),
        "has format None": lambda: pull_adapter("me/peft"),
        "exists already": lambda: pull_adapter("me/other", tmp_path / "empty"),
        "no adapter at": lambda: push_adapter(tmp_path / "empty", "me/scenes"),
    }
    for message, call in tried.items():
        with pytest.raises(UserError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)
    assert "me/scenes" not in hub.repos and not any((tmp_path / "empty").iterdir())
