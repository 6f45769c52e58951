"""An evaluation that was stopped goes on, a finished one is not made again, and the batch size changes no answer."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lav2.errors import UserError
from lav2.evaluation import run
from lav2.evaluation.predict import Journal, Predictor, check, digest
from lav2.evaluation.run import evaluate
from tests.evaluation.conftest import composed

ROOT = Path(__file__).parents[2]
QUESTIONS = ["What color is the circle?", "Is there a star?", "Where is the square?", "What is this?", "Who?"]


def caption(run_folder, heldout, *more):
    return composed(
        f"run={run_folder}",
        "eval=coco_caption",
        f"paths.annotations={heldout / 'captions.json'}",
        f"paths.images={heldout / 'images'}",
        *more,
    )


def pictures(heldout: Path) -> list[Path]:
    return sorted((heldout / "images").iterdir())


@pytest.mark.parametrize("more", [{}, {"num_beams": 3}, {"temperature": 0.8, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("size", [1, 3, 32])
def test_answers_are_the_same_whatever_the_batch_size(predictor, assistant, heldout, size, more):
    """In float32 to the token: greedy, by beams and drawn; against the model asked one by one."""
    images = [*pictures(heldout)[:4], None]
    inputs = ["", "", "A red star is above a blue circle.", "", "The small square is green."]
    answers = predictor().generate(QUESTIONS, images, inputs, max_new_tokens=20, batch_size=size, **more)
    alone = [
        assistant.generate([question], [image], [input], max_new_tokens=20, rows=[row], **more)[0]
        for row, (question, image, input) in enumerate(zip(QUESTIONS, images, inputs, strict=True))
    ]
    assert answers == alone and len(set(answers)) > 2


@pytest.mark.parametrize("name", ["coco_caption", "instructions"])
def test_scores_are_the_same_whatever_the_batch_size(run_folder, heldout, tmp_path, name):
    entries = [{"instruction": q, "input": "", "output": f"{q} Yes, red."} for q in QUESTIONS * 2]
    (tmp_path / "instructions.json").write_text(json.dumps(entries))
    scores = []
    for size in (1, 3, 32):
        cfg = caption(run_folder, heldout, f"eval={name}", f"paths.instructions={tmp_path / 'instructions.json'}")
        cfg.eval.generation.batch_size, cfg.eval.generation.max_new_tokens = size, 12
        scores.append(evaluate(cfg))
        (run_folder / "evaluation" / name / "journal.jsonl").unlink()
    for other in scores[1:]:
        # the loss is a sum in another order; all else is made of the same tokens
        assert other.pop("loss", 0) == pytest.approx(scores[0].get("loss", 0), rel=1e-5)
        assert other.pop("perplexity", 0) == pytest.approx(scores[0].get("perplexity", 0), rel=1e-5)
        assert other == {name: value for name, value in scores[0].items() if name not in ("loss", "perplexity")}


def test_a_killed_evaluation_goes_on(run_folder, heldout, tmp_path, calls):
    """Killed by the system in the middle: what was answered is kept, the rest alone is asked, the scores are equal."""
    settings = ["eval.generation.batch_size=1", "eval.generation.max_new_tokens=60"]
    arguments = [f"paths.annotations={heldout / 'captions.json'}", f"paths.images={heldout / 'images'}", *settings]
    command = [sys.executable, ROOT / "evaluate.py", f"run={run_folder}", "eval=coco_caption", *arguments]
    journal = run_folder / "evaluation" / "coco_caption" / "journal.jsonl"
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not journal.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(Journal(journal).values)
    assert 0 < done < 12 and not journal.with_name("scores.json").exists()

    scores = evaluate(caption(run_folder, heldout, *settings))
    assert calls == [1] * (12 - done)
    journal.unlink()
    assert evaluate(caption(run_folder, heldout, *settings)) == scores


@pytest.mark.parametrize("more", [{"temperature": 1.0}, {"num_beams": 3}], ids=str)
def test_an_evaluation_that_failed_goes_on(predictor, heldout, assistant, monkeypatch, more):
    """With the answers of one that was never stopped: drawn ones and beams too."""
    settings = {"max_new_tokens": 8, **more}
    images, prompts = pictures(heldout), ["Describe the picture."] * 12
    generate, asked = type(assistant).generate, []

    def failing(self, instructions, *arguments, **settings):
        if len(asked) == 2:
            raise MemoryError
        asked.append(len(instructions))
        return generate(self, instructions, *arguments, **settings)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(type(assistant), "generate", failing)
        predictor().generate(prompts, images, batch_size=5, **settings)
    assert len(predictor().journal.values) == 10
    resumed = predictor().generate(prompts, images, batch_size=4, **settings)
    assert resumed == predictor("anew").generate(prompts, images, batch_size=5, **settings)
    assert len(set(resumed)) > 2


def test_a_finished_evaluation_reads_no_weights(run_folder, heldout, calls, monkeypatch):
    """Not for another batch size either; but anew for other settings, another adapter, another picture."""
    tokens = "eval.generation.max_new_tokens=4"
    first = evaluate(caption(run_folder, heldout, tokens))
    assert calls == [12]
    loaded, load = [], run.load
    monkeypatch.setattr(run, "load", lambda *given, **more: loaded.append(1) or load(*given, **more))
    assert evaluate(caption(run_folder, heldout, tokens, "eval.generation.batch_size=5")) == first
    assert not loaded and calls == [12]

    evaluate(caption(run_folder, heldout, "eval.generation.max_new_tokens=5"))
    assert loaded and calls == [12, 12]
    os.utime(pictures(heldout)[0], (1, 1))
    evaluate(caption(run_folder, heldout, tokens))
    assert calls == [12, 12, 1]
    weights = run_folder / "adapter" / "adapter_config.json"
    weights.write_text(weights.read_text() + "\n")
    evaluate(caption(run_folder, heldout, tokens))
    assert calls == [12, 12, 1, 12]


def test_one_question_is_asked_once(predictor, calls):
    answers = predictor().generate(["Who?", "What?", "Who?"], max_new_tokens=3)
    assert calls == [2] and answers[0] == answers[2]


def test_a_prompt_longer_than_the_model_is_named(predictor, capsys):
    answers = predictor().generate(["Who?", "word " * 400], max_new_tokens=3)
    assert answers[0] and answers[1] == "" and "longer than the model reads" in capsys.readouterr().out


def test_a_line_that_a_kill_cut_short_does_not_count(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.add({"a": "ä\u2028", "b": None})
    content = journal.path.read_bytes()
    journal.path.write_bytes(content + b'{"key": "c", "val')
    again = Journal(journal.path)
    assert again.values == {"a": "ä\u2028", "b": None}
    again.add({"c": 1})
    assert Journal(journal.path).values == {"a": "ä\u2028", "b": None, "c": 1}


def test_digests_tell_values_apart():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": "2"})
    assert digest("ab", "c") != digest("a", "bc")


def test_the_model_is_loaded_late(tmp_path):
    def load():
        raise AssertionError("read the weights")

    assert Predictor(load, "m", tmp_path).values([], [], lambda rows: [], 4, "nothing") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval=coco_caption"], "paths.annotations is None, paths.images is None"),
        (["eval=coco_caption", "eval.format=voc"], "eval.format is 'voc'"),
        (["eval=coco_caption", "+eval.generation.max_tokens=3"], "eval.generation.max_tokens is no generation setting"),
        (["eval=instructions", "eval.generation.batch_size=0"], "batch_size is 0"),
        (["eval=scienceqa"], "paths.scienceqa is None"),
        (["eval=mme", "paths.mme=/no/where"], "paths.mme is /no/where"),
        (["eval=vicuna80"], "paths.questions is None"),
        (["eval=vicuna80", "eval.judge.endpoint=https://x/v1"], "paths.reference is None"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_show_before_weights_are_read(run_folder, monkeypatch, arguments, message):
    monkeypatch.setattr(run, "load", None)
    with pytest.raises(UserError, match=message):
        evaluate(composed(f"run={run_folder}", *arguments))
    assert not (run_folder / "evaluation").exists()


def test_all_mistakes_in_one_message(tmp_path):
    with pytest.raises(
        UserError, match=r"paths.one is None, paths.two is /gone: .*; .*beams is no.*; .*batch_size is 1.5"
    ):
        check({"beams": 3, "batch_size": 1.5}, one=None, two="/gone", three=tmp_path)


def test_an_adapter_folder_will_do(run_folder, heldout, tmp_path, calls):
    """One that was converted or pulled holds its evaluations itself; those of a run's adapter are the run's."""
    tokens = "eval.generation.max_new_tokens=4"
    pulled = shutil.copytree(run_folder / "adapter", tmp_path / "pulled")
    scores = evaluate(caption(pulled, heldout, tokens))
    assert json.loads((pulled / "evaluation" / "coco_caption" / "scores.json").read_text()) == scores
    assert evaluate(caption(run_folder, heldout, tokens)) == scores and calls == [12, 12]
    (run_folder / "config.yaml").touch()
    assert evaluate(caption(run_folder / "adapter", heldout, tokens)) == scores and calls == [12, 12]  # as just now
    assert not (run_folder / "adapter" / "evaluation").exists()
