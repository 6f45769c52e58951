"""Experts are chosen by name on the command line; every config names a class and arguments that it has."""

import inspect
import json

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from lav2.cli import CONF, register_resolvers
from lav2.config import construct
from lav2.errors import UserError
from lav2.experts import Experts

NAMES = sorted(path.stem for path in (CONF / "experts").glob("*.yaml"))


def config(*overrides):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("evaluate", ["run=outputs/demo", *overrides])


@pytest.mark.parametrize("name", NAMES)
def test_a_config_fits_its_class(name):
    settings = OmegaConf.to_container(config(f"experts=[{name}]").experts, resolve=True)
    assert list(settings) == [name]

    def check(settings):
        target = get_object(settings.pop("_target_"))
        inspect.signature(target).bind(**settings)
        for value in settings.values():
            if isinstance(value, dict):
                check(value)
        stated = {key: value for key, value in settings.items() if value != "???" and not isinstance(value, dict)}
        defaults = {name: one.default for name, one in inspect.signature(target).parameters.items()}
        return {key for key, value in stated.items() if defaults.get(key, value) not in (value, inspect._empty)}

    changed = check(settings[name])
    assert changed == ({"min_score", "characters", "name"} if name == "signs" else set())


def test_context_has_the_defaults_of_python():
    settings = OmegaConf.to_container(config().context, resolve=True)
    defaults = inspect.signature(Experts).parameters
    assert settings.pop("_target_") == "lav2.experts.Experts" and settings.pop("experts") == {}
    assert settings == {name: defaults[name].default for name in settings} and len(settings) == len(defaults) - 1


def test_several_experts_in_their_order(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"image": "a.png", "text": "hello"}) + "\n")
    cfg = config("experts=[answers,caption]", f"experts.answers.file={file}", f"experts.caption.captioner={tmp_path}")
    experts = construct("context", cfg.context)
    assert [expert.name for expert in experts.experts] == ["notes", "caption"]
    assert construct("context", config().context).experts == []


def test_mistakes_are_one_line_before_any_weight_is_read(tmp_path):
    for overrides, message in (
        (["experts=[answers]", "experts.answers.file=/no/such.jsonl"], "/no/such.jsonl"),
        (["experts=[caption]", "experts.caption.captioner=/no/such"], "no captioner at /no/such"),
        (["experts=[]", "context.max_tokens=0"], "context.max_tokens is 0"),
        (["experts=[]", f"eval.folder={tmp_path}"], "no expert is chosen"),
    ):
        with pytest.raises(UserError, match=message):
            construct("eval", config("eval=experts", f"eval.folder={tmp_path}", *overrides).eval)
