"""The base model's answers beside the adapted model's."""

import json

import pytest
import torch

from lav2.data import collate
from lav2.data.examples import Example, Turn
from lav2.data.slots import image_prefix
from lav2.data.tokens import encode
from lav2.evaluation.instructions import reference_losses
from lav2.evaluation.run import evaluate
from lav2.inference import Assistant
from lav2.llama.generation import generate
from lav2.training.loss import response_loss
from lav2.vision import VisionEncoder
from tests.adapter.methods import lavin
from tests.evaluation.conftest import WEIGHTS, composed

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


def test_references_begin_as_in_training_where_images_are_tokens(assistant):
    """LaVIN's samples begin with a modality token; its scores are the loss that training has of the same samples."""
    encoder = VisionEncoder(
        "lav2-tiny", WEIGHTS / "vision.safetensors", tokens="class_tokens", layers=[2, 4, 6], projected=False
    )
    model = lavin(assistant.model.llama, encoder)
    reader = Assistant(model, assistant.tokenizer, encoder, assistant.template)
    examples = [Example(question, "", "The red one.", question, "") for question in QUESTIONS]
    prefix = image_prefix(reader.tokenizer, model.config.visual_length, has_image=False)
    segments = [reader.template.render(example.turns, example.system) for example in examples]
    batch = collate([encode(reader.tokenizer, one, 512, prefix) for one in segments])
    read = reference_losses(reader, examples, 512)
    nats = sum(one["nats"] for one in read) / sum(one["tokens"] for one in read)
    with torch.no_grad():
        assert nats == pytest.approx(float(response_loss(model, batch, "instruction")), rel=1e-4)
