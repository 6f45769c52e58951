"""What the model reads of a conversation, and what becomes of it."""

from contextlib import closing

import pytest
from omegaconf import OmegaConf

from lav2.chat import Conversation, Exchange
from lav2.chat.run import load_assistant
from lav2.data.conversations import read_sharegpt
from lav2.data.examples import Turn
from lav2.data.problems import Problems
from lav2.data.templates import Template
from lav2.data.tokens import encode
from lav2.errors import UserError
from lav2.experts import Experts

QUESTION = "What color is it?"
SETTINGS = {"max_new_tokens": 12, "temperature": 1.0}


class Told:
    """An expert that counts how often it is asked; a failure is none that can be kept."""

    def __init__(self, name, text):
        self.name, self.text, self.asked = name, text, 0

    def __call__(self, image):
        self.asked += 1
        if self.text is None:
            raise ValueError("out of order")
        return self.text


@pytest.fixture
def read(assistant, monkeypatch):
    """The token ids and the features of every prompt that the assistant is given from here on."""
    given = []
    answer = type(assistant).stream_answer

    def stream_answer(self, prompt, visual, **settings):
        given.append((*self.encode([prompt], [visual]), visual))
        return answer(self, prompt, visual, **settings)

    monkeypatch.setattr(type(assistant), "stream_answer", stream_answer)
    return given


def said(conversation, question, **settings):
    return "".join(conversation.ask(question, **SETTINGS | settings))


@pytest.mark.parametrize("kind", ["short", "alpaca", "vicuna", "llama2"])
def test_the_model_reads_the_turns_as_training_wrote_them(assistant, read, monkeypatch, kind):
    """Token by token the prompt is the beginning of the sample that training would make of the whole conversation."""
    monkeypatch.setattr(assistant, "template", Template(kind))
    conversation = Conversation(assistant)
    conversation.exchanges = [Exchange("There is a red circle.", "Yes."), Exchange("What shape is it?", "A circle.")]
    said(conversation, "What color is it?")
    turns = [Turn(one.question, "", one.answer) for one in conversation.exchanges]
    sample = encode(
        assistant.tokenizer, Template(kind).render([*turns[:-1], Turn("What color is it?", "", "Red.")]), 256
    )
    [(tokens, _)] = read
    assert tokens == sample.tokens[: len(tokens)].tolist()
    assert sample.supervised[len(tokens) :].all() and conversation.dropped == 0


def test_the_first_answer_is_the_assistant_s(assistant, pictures):
    conversation = Conversation(assistant)
    conversation.show(pictures[0])
    assert [said(conversation, QUESTION)] == assistant.generate([QUESTION], [pictures[0]], **SETTINGS)


def test_the_oldest_turns_make_room(assistant, read):
    """As many of the last turns as fit beside the question and the answer, and it is said how many did not."""
    conversation = Conversation(assistant)
    longest = assistant.model.llama.config.max_length
    for number in range(9):
        said(conversation, f"How many shapes are there, {number}, and where do they lie?")
    read.clear()
    assert len(said(conversation, QUESTION, max_new_tokens=100)) > 0
    [(tokens, _)] = read
    dropped = conversation.dropped
    assert 0 < dropped < 9 and str(dropped) in conversation.note and "left out" in conversation.note
    assert len(tokens) <= longest - 100

    def prompt(first):
        turns = [Turn(one.question, "", one.answer) for one in conversation.exchanges[first:9]]
        return assistant.prompt_tokens(assistant.template.render([*turns, Turn(QUESTION)]), has_image=False)

    assert tokens == prompt(dropped) and len(prompt(dropped - 1)) > longest - 100

    read.clear()
    said(conversation, "a " * 100, max_new_tokens=200)  # more than the room, less than the model reads: never cut
    assert conversation.dropped == 10 and assistant.tokenizer.decode(read[0][0]).count(" a") == 99
    with pytest.raises(UserError, match="the question takes .* tokens and this model reads 256: shorten it"):
        conversation.ask("a " * 300)
    assert len(conversation.exchanges) == 11


def test_one_turn_left_out_is_one(assistant):
    conversation = Conversation(assistant)
    assert conversation.note == ""
    conversation.dropped = 1
    assert conversation.note == "the oldest turn was left out: this model reads 256 tokens"


def test_fewer_turns_on_request(assistant, read):
    for turns, length in ((0, 1), (1, 2), (5, 3)):
        conversation = Conversation(assistant, turns=turns)
        conversation.exchanges = [Exchange("One?", "One."), Exchange("Two?", "Two.")]
        said(conversation, "Three?")
        assert assistant.tokenizer.decode(read.pop()[0]).count("### Instruction:") == length
        assert conversation.note == ""  # it was asked for


def test_a_stopped_answer_is_kept_as_far_as_it_went(assistant):
    conversation = Conversation(assistant)
    with closing(conversation.ask(QUESTION, max_new_tokens=60)) as pieces:
        begun = next(pieces) + next(pieces)
    assert conversation.exchanges == [Exchange(QUESTION, begun)]
    whole = assistant.generate([QUESTION], max_new_tokens=60)[0]
    assert whole.startswith(begun) and len(whole) > len(begun)


def test_questions_are_about_the_newest_picture(assistant, read, pictures):
    conversation = Conversation(assistant)
    for picture in (None, *pictures):
        conversation.show(picture)
        said(conversation, QUESTION)
    (_, none), (_, first), (tokens, second) = read
    features = list(assistant.encode_images(pictures))
    assert none is None and first.equal(features[0]) and second.equal(features[1])
    assert assistant.tokenizer.decode(tokens).count(QUESTION) == 3  # what was said before is still read
    assert [one.picture for one in conversation.exchanges] == ["", *map(str, pictures)]
    with pytest.raises(UserError, match="cannot read the image"):
        conversation.show(__file__)
    assert conversation.picture == str(pictures[1])  # a picture that cannot be read changes nothing
    conversation.reset()
    assert conversation.exchanges == [] and conversation.see() is None


def test_experts_are_asked_once_a_picture(assistant, read, pictures, capsys):
    ocr, broken = Told("ocr", "EXIT"), Told("tags", None)
    everybody = Experts({"words": ocr, "tags": broken})
    conversation = Conversation(assistant, everybody)
    conversation.show(pictures[0])
    for _ in range(2):
        said(conversation, QUESTION)
    assert ocr.asked == broken.asked == 1  # nor is one that failed asked at every question
    text = assistant.tokenizer.decode(read[-1][0])
    assert text.count("ocr: EXIT") == 1 and text.index("ocr: EXIT") > text.rindex(QUESTION)  # beside the question alone
    assert (
        conversation.exchanges[0].context == "ocr: EXIT" and "out of order" in conversation.consult().failures["tags"]
    )

    conversation.use(everybody.only(["tags"]))
    said(conversation, QUESTION)
    assert "EXIT" not in assistant.tokenizer.decode(read[-1][0])
    conversation.use(everybody.only([]))
    assert conversation.consult().texts == {}
    assert everybody.only([" words "]).experts == everybody.only(["ocr"]).experts == [ocr]
    with pytest.raises(UserError, match="there is no expert 'orc'; there are: ocr, tags"):
        everybody.only(["orc"])


def test_texts_alone_where_the_model_is_not_to_see(assistant, read, pictures):
    conversation = Conversation(assistant, Experts([Told("ocr", "EXIT")], with_image=False))
    conversation.show(pictures[0])
    said(conversation, QUESTION)
    assert read[0][1] is None


def test_without_eyes_a_picture_is_for_experts(assistant, monkeypatch, pictures):
    monkeypatch.setattr(assistant, "encoder", None)
    with pytest.raises(UserError, match="trained without images"):
        Conversation(assistant).show(pictures[0])
    conversation = Conversation(assistant, [Told("ocr", "EXIT")])
    conversation.show(pictures[0])
    said(conversation, QUESTION)
    assert conversation.exchanges[0].context == "ocr: EXIT"


def test_a_saved_conversation_can_be_trained_on(assistant, pictures, tmp_path):
    conversation = Conversation(assistant, [Told("ocr", "ÄXIT")])
    with pytest.raises(UserError, match="nothing was said yet"):
        conversation.save(tmp_path / "none.json")
    conversation.show(pictures[0])
    said(conversation, "What does the sign say?")
    said(conversation, QUESTION)
    path = tmp_path / "talk.json"
    conversation.save(path)
    problems = Problems("instructions", "raise", 0.0)
    [example] = read_sharegpt(path, problems)
    assert [(turn.instruction, turn.response) for turn in example.turns] == [
        (one.question, one.answer) for one in conversation.exchanges
    ]
    assert not problems.warnings and "ÄXIT" in path.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="cannot write .*nowhere"):
        conversation.save(tmp_path / "nowhere" / "talk.json")


@pytest.mark.parametrize(
    ("question", "settings", "message"),
    [
        ("  ", {}, "the question is empty"),
        ("a", {"top_p": 2}, "top_p is 2"),
        ("a", {"num_beams": 2, "temperature": 0}, "beam search cannot be streamed"),
    ],
)
def test_mistakes_are_said_at_once_and_leave_no_trace(assistant, question, settings, message):
    conversation = Conversation(assistant)
    with pytest.raises(UserError, match=message):
        conversation.ask(question, **settings)
    assert conversation.exchanges == []


def test_a_folded_model_answers_alike(assistant, run, pictures):
    given = {"base": None, "vision_weights": None, "dtype": "float32", "quantize": None, "fold": True}
    cfg = OmegaConf.create(given)
    folded = load_assistant(cfg, run / "adapter")
    assert not any(tuning.linears for tuning in folded.model.adapter["instruction"].layers)
    answers = [one.generate([QUESTION] * 2, pictures, max_new_tokens=12) for one in (folded, assistant)]
    assert answers[0] == answers[1]
