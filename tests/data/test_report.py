"""The report on the data, on real conversations and photographs and through the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lav2.cli import CONF, register_resolvers
from lav2.config import problems
from lav2.data import report
from lav2.data.examples import Turn
from lav2.data.instructions import read_instructions
from lav2.data.problems import Problems
from lav2.data.slots import image_prefix
from lav2.data.templates import Template
from lav2.data.tokens import Samples, encode
from lav2.llama.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", ["alpaca", "vicuna", "llama2"])
def test_supervised_text_is_marked_and_nothing_else(real_data, kind):
    tokenizer = Tokenizer(real_data / "tokenizer" / "llama_tokenizer.model")
    path = real_data / "instructions" / "sharegpt_350.json"
    examples = read_instructions([{"format": "sharegpt", "path": path}], Problems("instructions"))
    template = Template(kind)
    for example in examples[::10]:
        sample = encode(tokenizer, template.render(example.turns), 4096)
        text = report.as_seen(sample, tokenizer, template)
        plain = text.plain.replace("<BOS>", "").replace("<EOS>", "")
        assert plain == tokenizer.decode(sample.tokens.tolist())
        marked = "".join(text.plain[s.start : s.end] for s in text.spans if s.style == report.SUPERVISED)
        said = "".join(turn.response + template.stop for turn in example.turns)
        assert re.sub(r"\s", "", marked) == re.sub(r"\s", "", said)
        ends = sum(text.plain[s.start : s.end] == "<EOS>" and report.SUPERVISED in s.style for s in text.spans)
        assert ends == (0 if template.stop else len(example.turns))


def test_examples_show_where_they_are_from_and_what_was_cut(tokenizer, capsys):
    template = Template("short")
    turns = [Turn("Where is the star?", "", "The star is below the circle."), Turn("And?", "", "Red.")]
    samples = [encode(tokenizer, template.render(turns), length) for length in (512, 512, 512, 40, 512, 512)]
    places = [f"a.json entry {number}" for number in range(6)]
    report.print_examples({"instruction": Samples(samples, places=places)}, tokenizer, template)
    printed = capsys.readouterr().out
    assert [number for number in range(6) if places[number] in printed] == [0, 3, 5]
    supervised, truncated = samples[3].supervised.sum(), samples[3].truncated
    assert f"40 tokens, {supervised} of them supervised, {truncated} more cut off" in printed
    assert "Where is the star?" in printed and "Red.<EOS>" in printed


def test_places_for_an_image_are_shown(tokenizer):
    segments = Template("short").render([Turn("What?", "", "A star.")])
    sample = encode(tokenizer, segments, 512, image_prefix(tokenizer, 2, has_image=True))
    text = report.as_seen(sample, tokenizer, Template("short")).plain
    assert text.startswith("<modality><BOS>Image:") and text.count("<image>") == 2 and text.endswith("A star.<EOS>")


def test_summary_counts_what_was_cut(tokenizer):
    turns = [Turn("Where is the star?", "", "The star is below the circle."), Turn("And?", "", "Red.")]
    whole, cut = (encode(tokenizer, Template("short").render(turns), length) for length in (512, 40))
    assert cut.lost_turns == 1
    training, held_out = Samples([whole, cut], places=["x 0", "x 1"]), Samples([whole], places=["x 2"])
    summary = report.summarize(training, held_out, Problems("instructions"))
    assert (summary["training"], summary["validation"], summary["truncated"], summary["lost_turns"]) == (2, 1, 1, 1)
    assert summary["truncated_tokens"] == whole.supervised.sum() - cut.supervised.sum()
    assert summary["truncated_places"] == ["x 1"] and summary["tokens"]["100%"] == len(whole.tokens)
    report.print_summary({"instruction": summary}, {"instruction": Problems("instructions", warnings=["odd"])})


@pytest.fixture
def arguments(real_data, tmp_path):
    """The command line of a report on real photographs, instructions and conversations; no weights anywhere."""
    alpaca = real_data / "instructions" / "alpaca_gpt4_700.json"
    sharegpt = real_data / "instructions" / "sharegpt_350.json"
    return [
        "data=files",
        "data_report=true",
        "llama=7b",
        f"llama.tokenizer={real_data / 'tokenizer' / 'llama_tokenizer.model'}",
        f"paths.annotations={real_data / 'coco' / 'annotations' / 'captions_train2017.json'}",
        f"paths.images={real_data / 'coco' / 'train2017'}",
        f"data.instructions=[{alpaca},{{format:sharegpt,path:{sharegpt}}}]",
        f"data.cache_dir={tmp_path / 'features'}",
    ]


def test_the_command_prints_it_without_weights_and_leaves_nothing(arguments, tmp_path):
    environment = os.environ | {"COLUMNS": "200", "FORCE_COLOR": "1"}
    command = [sys.executable, ROOT / "train.py", *arguments, f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert "\x1b[1;32m" in done.stdout  # the supervised tokens
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).replace(",", "")
    counts = [re.findall(rf"{name} +│ (\d+) +│ (\d+) ", plain) for name in ("training", "validation")]
    (training,), (validation,) = counts
    assert [int(one) + int(other) for one, other in zip(training, validation, strict=True)] == [130, 1050]
    for part in ("caption: captions_train2017.json annotation", "instruction: sharegpt_350.json entry", ".jpg"):
        assert part in plain
    assert not list(tmp_path.iterdir())


def test_what_the_report_needs_is_checked_before(arguments, tmp_path):
    register_resolvers()
    mistakes = ["llama.tokenizer=null", f"paths.images={tmp_path / 'lost'}", "vision.weights=5"]  # the last is not used
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*arguments, *mistakes])
    assert problems(cfg) == [
        "no tokenizer: set llama.tokenizer, or llama.path to the base model",
        f"data: no image folder {tmp_path / 'lost'}",
    ]
