"""Invariant 7: save → load → same logits; what does not fit is named."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lav2.adapter import load_adapter, save_adapter
from lav2.adapter.folder import WEIGHTS
from lav2.errors import UserError
from lav2.llama import Llama, LlamaConfig


def test_round_trip(adapted, llama, tokens, features, tmp_path):
    save_adapter(tmp_path, adapted)
    loaded = load_adapter(tmp_path, llama)
    assert torch.equal(loaded(tokens, features), adapted(tokens, features))


def test_the_folder_holds_the_adapter_alone(adapted, tmp_path):
    save_adapter(tmp_path, adapted)
    assert load_file(tmp_path / WEIGHTS).keys() == adapted.adapter.state_dict().keys()


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen", "nan", "garbage"])
def test_damage_is_named(adapted, llama, tmp_path, damage):
    save_adapter(tmp_path, adapted)
    state = load_file(tmp_path / WEIGHTS)
    name = "instruction.layers.4.linears.wq.bias"
    if damage == "missing":
        del state[name]
    elif damage == "unexpected":
        state[name := "instruction.layers.4.linears.wq.lora"] = torch.zeros(1)
    elif damage == "misshapen":
        state[name] = state[name][1:].contiguous()
    elif damage == "nan":
        state[name][0] = float("nan")
    save_file(state, tmp_path / WEIGHTS)
    if damage == "garbage":
        (tmp_path / WEIGHTS).write_bytes(b"<html>not found</html>")
        name = WEIGHTS
    with pytest.raises(UserError, match=name):
        load_adapter(tmp_path, llama)


def test_another_base_is_refused(adapted, llama, tmp_path):
    save_adapter(tmp_path, adapted)
    wider = LlamaConfig(**{**llama.config.__dict__, "hidden_size": 64})
    with pytest.raises(UserError, match="hidden_size 64 instead of 32"):
        load_adapter(tmp_path, Llama(wider))
    with pytest.raises(UserError, match="other base weights"):
        load_adapter(tmp_path, Llama(llama.config).reset_parameters())


def test_a_base_whose_file_rounds_its_settings_is_the_same(adapted, llama, tmp_path):
    """GGUF files hold them in float32."""
    save_adapter(tmp_path, adapted)
    rounded = float(torch.tensor(llama.config.norm_eps, dtype=torch.float32))
    assert rounded != llama.config.norm_eps
    llama.config = replace(llama.config, norm_eps=rounded)
    load_adapter(tmp_path, llama)
    llama.config = replace(llama.config, norm_eps=1e-4)
    with pytest.raises(UserError, match="norm_eps 0.0001 instead of"):
        load_adapter(tmp_path, llama)
