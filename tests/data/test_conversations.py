import json

from lav2.data.instructions import read_instructions
from lav2.data.problems import Problems


def turns(*texts, speakers=("human", "gpt")):
    return [{"from": speakers[number % 2], "value": text} for number, text in enumerate(texts)]


def read(tmp_path, entries, name="chat.json", **source):
    text = json.dumps(entries) if name.endswith(".json") else "\n".join(map(json.dumps, entries))
    (tmp_path / name).write_text(text)
    problems = Problems("instructions", max_bad=1)
    source = {"format": "sharegpt"} | source
    return read_instructions([source | {"path": tmp_path / name}], problems), problems


def test_conversations(tmp_path):
    entries = [
        {"id": "a", "conversations": turns(" Hi. ", "Hello.\n", "Bye.", "Good bye.")},
        {"id": "b", "conversations": [{"from": "system", "value": "Be brief."}, *turns("Hi.", "Hello.")]},
        {"id": "c", "conversations": turns("Count.", "One.", speakers=("user", "chatgpt"))},
    ]
    for name in ("chat.json", "chat.jsonl"):
        (first, second, third), problems = read(tmp_path, entries, name)
        assert [(t.instruction, t.response) for t in first.turns] == [("Hi.", "Hello."), ("Bye.", "Good bye.")]
        assert (first.instruction, first.response, len(first.history)) == ("Bye.", "Good bye.", 1)
        assert second.system == "Be brief." and not second.history and not first.system
        assert third.response == "One."
        assert first.key == second.key != third.key  # two conversations that begin alike stay together
        assert problems.total == 3 and not problems.skipped and not problems.warnings


def test_bad_conversations_are_named_and_counted(tmp_path):
    system = {"from": "system", "value": "Be brief."}
    bad = {
        "entry that is no object": ["Hi.", "Hello."],
        "missing conversations": {"id": "a"},
        "conversations that are no list of turns": {"conversations": []},
        "turn of an unknown speaker 'tool'": {"conversations": [{"from": "tool", "value": "1"}]},
        "turn of an unknown speaker None": {"conversations": ["Hi."]},
        "empty turn": {"conversations": turns("Hi.", " ")},
        "missing turn": {"conversations": [{"from": "human"}]},
        "turn that is no text": {"conversations": turns("Hi.", 5)},
        "system message that is not the first turn": {"conversations": [*turns("Hi.", "Hello."), system]},
        "two human turns in a row": {"conversations": turns("Hi.", "There?", speakers=("human", "human"))},
        "two assistant turns in a row": {"conversations": [*turns("Hi.", "Hello."), *turns("Hi", "Hello.")[1:]]},
        "conversation that the human does not begin": {"conversations": turns("Hi.", speakers=("gpt",))},
        "conversation that ends without an answer": {"conversations": turns("Hi.", "Hello.", "Are you there?")},
        "conversation without a turn": {"conversations": [system]},
        "<image> without an image": {"conversations": turns("<image>\nWhat is this?", "A star.")},
    }
    examples, problems = read(tmp_path, list(bad.values()))
    assert not examples and problems.total == problems.skipped == len(bad)
    assert problems.places == {reason: [f"chat.json entry {number}"] for number, reason in enumerate(bad)}


def test_unknown_fields_and_broken_lines_are_named(tmp_path):
    (tmp_path / "chat.jsonl").write_text(json.dumps({"conversation": []}) + '\n{"conversations": [')
    problems = Problems("instructions", max_bad=1)
    read_instructions([{"format": "sharegpt", "path": tmp_path / "chat.jsonl"}], problems)
    assert problems.places == {
        "missing conversations": ["chat.jsonl line 1"],
        "malformed json line": ["chat.jsonl line 2"],
    }
    assert problems.warnings == ["chat.jsonl has fields that are not read: 'conversation' (in 1)"]


def test_conversations_about_images(tmp_path):
    """In exactly the form of llava_instruct_150k.json; the mixtures of LLaVA 1.5 also hold text alone."""
    entries = [
        {
            "id": "000000033471",
            "image": "000000033471.jpg",
            "conversations": turns(
                "<image>\nWhat are the colors of the bus in the image?",
                "The bus in the image is white and red.",
                "Is the bus driving down the street?",
                "The bus is driving down the street.",
            ),
        },
        {"id": "2", "image": "coco/2.jpg", "conversations": turns("What is it?\n<image>", "A <image> tag.")},
        {"id": "3", "conversations": turns("Hi.", "Hello.")},
    ]
    (bus, tag, text), problems = read(tmp_path, entries, format="llava", images=str(tmp_path / "photos"))
    assert [turn.instruction for turn in bus.turns] == [
        "What are the colors of the bus in the image?",
        "Is the bus driving down the street?",
    ]
    assert bus.image == tmp_path / "photos" / "000000033471.jpg" and bus.key == "000000033471.jpg"
    assert (tag.instruction, tag.response) == ("What is it?", "A <image> tag.")
    assert tag.image == tmp_path / "photos" / "coco" / "2.jpg"
    assert text.image is None and not problems.warnings and not problems.skipped


def test_bad_conversations_about_images(tmp_path):
    said = {"conversations": turns("<image>\nWhat is this?", "A star.")}
    bad = {
        "empty turn": {"image": "a.jpg", "conversations": turns("<image>", "A star.")},
        "<image> without an image": said,
        "image that is not the path of one image": said | {"image": ["a.jpg", "b.jpg"]},
        "image at a web address, which is not downloaded": said | {"image": "http://example.org/a.jpg"},
    }
    examples, problems = read(tmp_path, list(bad.values()), format="llava", images=str(tmp_path))
    assert not examples
    assert problems.places == {reason: [f"chat.json entry {number}"] for number, reason in enumerate(bad)}


def test_real_conversations(real_data):
    path = real_data / "instructions" / "sharegpt_350.json"
    problems = Problems("instructions", on_error="raise")
    examples = read_instructions([{"format": "sharegpt", "path": path}], problems)
    content = json.loads(path.read_text())
    assert len(examples) == problems.total == len(content) == 350 and not problems.warnings
    for example, entry in zip(examples, content, strict=True):
        said = [text for turn in example.turns for text in (turn.instruction, turn.response)]
        assert said == [turn["value"].strip() for turn in entry["conversations"]]
