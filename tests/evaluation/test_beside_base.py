"""The base model's answers beside the adapted model's."""

import json

import pytest

from lav2.data.examples import Example, Turn
from lav2.evaluation.instructions import reference_losses
from lav2.evaluation.run import evaluate
from lav2.llama.generation import generate
from tests.evaluation.conftest import composed

QUESTIONS = ["What color is the circle?", "Is there a star?", "Where is the square?"]


def test_the_base_is_the_frozen_model(assistant):
    base = assistant.bare()
    prompts = base.encode([base.template.render([Turn(question)]) for question in QUESTIONS])
    plain = [generate(base.model.llama, [ids], max_new_tokens=12, eos_id=base.end_ids)[0] for ids in prompts]
    answers = base.generate(QUESTIONS, max_new_tokens=12)
    assert answers == [base.tokenizer.decode(ids).strip() for ids in plain]
    assert answers != assistant.generate(QUESTIONS, max_new_tokens=12)  # whose adapter is away from its start


def test_both_are_scored_and_shown(run_folder, assistant, tmp_path, calls):
    entries = [{"instruction": question, "input": "", "output": "The red one."} for question in QUESTIONS]
    (tmp_path / "held_out.json").write_text(json.dumps(entries))
    arguments = [f"run={run_folder}", "eval=instructions", f"paths.instructions={tmp_path / 'held_out.json'}"]
    arguments += ["eval.generation.max_new_tokens=12"]
    alone = evaluate(composed(*arguments))
    scores = evaluate(composed(*arguments, "eval.beside_base=true"))
    assert {name: scores[name] for name in alone} == alone
    read = reference_losses(assistant.bare(), [Example(q, "", "The red one.", q, "") for q in QUESTIONS], 512)
    expected = sum(one["nats"] for one in read) / sum(one["tokens"] for one in read)
    assert scores["loss_base"] == pytest.approx(expected) != pytest.approx(scores["loss"])

    folder = run_folder / "evaluation" / "instructions"
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    said = [line["prediction"] for line in lines if line["condition"] == "base"]
    assert said == assistant.bare().generate(QUESTIONS, max_new_tokens=12) and len(lines) == 6
    assert (folder / "report.html").read_text().count("base model") == 3
    calls.clear()
    assert evaluate(composed(*arguments, "eval.beside_base=true")) == scores and calls == []  # from the journal
