"""A mistake in what is composed gets one line with the way out, not Hydra's own words."""

import pytest
from hydra import compose, initialize_config_dir

from lav2.cli import CONF, mistake, register_resolvers

MISTAKES = {
    ("train", "adapter.promt_layers=3"): (
        "there is no setting adapter.promt_layers, the nearest is adapter.prompt_layers; adapter has fusion, "
    ),
    ("train", "optim.captions.clip=3"): "there is no setting optim.captions, the nearest is optim.caption; optim has ",
    ("train", "experimnt=demo"): "there is no setting experimnt, the nearest is experiment; the config has ",
    ("train", "seed.x=3"): "there is no setting seed.x",
    ("train", "llama=8b"): "llama: there is no '8b'; choose one of 13b, 33b, ",
    (
        "train",
        "experiment=familly/v2",
    ): "experiment: there is no 'familly/v2', the nearest is family/v2; choose one of ",
    ("train", "hydra/launcher=slurm"): "hydra/launcher: there is no 'slurm', the nearest is slurm_a100; choose one of ",
    ("evaluate", "eval=coco"): "eval: there is no 'coco'; choose one of coco_caption, ",
    ("chat", "experts=[ocrx]"): "experts: there is no 'ocrx', the nearest is ocr; choose one of answers, ",
}


@pytest.mark.parametrize(("script", "override"), MISTAKES)
def test_one_line_of_ours(script, override):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(Exception) as caught:
        compose(script, [override])
    line = mistake(caught.value)
    assert line.startswith(MISTAKES[script, override]) and "\n" not in line and "+" not in line


def test_what_is_not_given_is_named():
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(Exception) as caught:
        compose("chat", ["experts=[detect]"]).experts.detect.model  # noqa: B018
    assert mistake(caught.value) == "experts.detect.model is not given: add experts.detect.model=…"
