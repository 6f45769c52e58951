"""The captioner and the model that answers: two adapters, one frozen base in memory."""

import json
import os
import shutil

import pytest

from lav2 import load
from lav2.adapter import save_adapter
from lav2.errors import UserError
from lav2.experts import CaptionExpert, Experts
from tests.experts.conftest import write_adapter


@pytest.fixture(scope="module")
def captioner_folder(tmp_path_factory):
    """A V1 captioner on the same base: late fusion, no bias tuning."""
    late_fusion = {"fusion": "late", "visual_layers": 0, "visual_length": 3, "bias": False, "scale": "none"}
    folder = tmp_path_factory.mktemp("captioner") / "run" / "adapter"
    return write_adapter(folder, seed=5, **late_fusion)


def parameters(*models):
    """Bytes by the memory they lie in."""
    return {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for model in models
        for tensor in model.parameters()
    }


def test_the_base_is_in_memory_once(assistant, captioner_folder):
    sibling = assistant.sibling(captioner_folder)
    base = parameters(assistant.model.llama)
    assert parameters(sibling.model.llama) == base and sibling.encoder is assistant.encoder
    together = parameters(assistant.model, sibling.model)
    adapters = [parameters(one.model.adapter) for one in (assistant, sibling)]
    assert sum(together.values()) == sum(base.values()) + sum(sum(one.values()) for one in adapters)
    apart = load(captioner_folder, device="cpu")
    assert not parameters(apart.model).keys() & together.keys()


def test_each_adapter_answers_as_if_it_were_alone(assistant, adapter_folder, captioner_folder, picture):
    prompts, settings = ["Describe the scene.", "Count to two."], {"max_new_tokens": 12}
    before = assistant.generate(prompts, [picture, None], **settings)
    shared = assistant.sibling(captioner_folder).generate(prompts, [picture, None], **settings)
    assert shared == load(captioner_folder, device="cpu").generate(prompts, [picture, None], **settings)
    assert shared != before == assistant.generate(prompts, [picture, None], **settings)


def test_a_captioner_tells_what_it_sees(assistant, captioner_folder, picture):
    """Given as a run folder, it goes onto the base of the model that asks."""
    expert = CaptionExpert(captioner_folder.parent, max_new_tokens=10)
    with pytest.raises(UserError, match="no base yet"):
        expert(picture)
    experts = Experts([expert])
    (told,), _ = experts.add_context(assistant, ["What is this?"], [picture], [""], {})
    caption = load(captioner_folder, device="cpu").generate(["Describe the scene."], [picture], max_new_tokens=10)[0]
    assert told == f"caption: {caption}" and caption
    assert expert.captioner.model.llama is assistant.model.llama


def test_v1s_newest_run_on_the_same_base_captions_unless_another_is_named(
    assistant, adapter_folder, captioner_folder, tmp_path, capsys
):
    def run(name, adapter, state, ended):
        shutil.copytree(adapter, tmp_path / name / "adapter")
        (tmp_path / name / "run.json").write_text(json.dumps({"state": state}))
        os.utime(tmp_path / name / "run.json", (ended, ended))
        return tmp_path / name

    def chosen():
        expert = CaptionExpert(runs=tmp_path)
        expert.share_base(assistant)
        expert.share_base(assistant)  # before every image
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("experts.caption.captioner=… names another run")
        return expert, line

    run("unfinished", captioner_folder, "failed", ended=5)
    config = run("other_base", captioner_folder, "finished", ended=4) / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(json.loads(config.read_text())["base"]["fingerprint"], "0" * 16))
    expert, line = chosen()
    assert expert.captioner is assistant and line.startswith("captions are by the model that answers")
    run("older", adapter_folder, "finished", ended=1)
    (run("damaged", captioner_folder, "finished", ended=6) / "run.json").write_text('{"state": "fin')
    newest = run("sweep/0", captioner_folder, "finished", ended=2)
    expert, line = chosen()
    assert line.startswith(f"captions are by {newest};") and expert.captioner.model.llama is assistant.model.llama
    assert expert.fingerprint == CaptionExpert(assistant.sibling(captioner_folder)).fingerprint
    named = CaptionExpert(tmp_path / "older", runs=tmp_path)
    named.share_base(assistant)
    assert named.fingerprint == CaptionExpert(assistant).fingerprint and not capsys.readouterr().err


def test_a_fingerprint_is_of_the_weights_and_the_prompt(assistant, captioner_folder):
    sibling = assistant.sibling(captioner_folder)
    ones = [CaptionExpert(sibling), CaptionExpert(assistant.sibling(captioner_folder)), CaptionExpert(assistant)]
    prints = [one.fingerprint for one in [*ones, CaptionExpert(sibling, "Say more."), CaptionExpert(sibling, seed=1)]]
    assert prints[0] == prints[1] and len(set(prints)) == 4


def test_what_cannot_caption_is_named(assistant, adapted, tmp_path):
    with pytest.raises(UserError, match="no captioner at .*nowhere"):
        CaptionExpert(tmp_path / "nowhere")
    with pytest.raises(UserError, match="trained on no captions"):
        CaptionExpert(load(write_adapter(tmp_path / "blind", seed=1, sees=False), device="cpu"))(None)
    save_adapter(tmp_path / "other", adapted, vision=None)
    with pytest.raises(UserError, match="another shape"):
        CaptionExpert(tmp_path / "other").share_base(assistant)
