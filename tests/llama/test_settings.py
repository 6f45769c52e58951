"""Generation settings: what is wrong with them is said before any work."""

import pytest

from lav2.errors import UserError
from lav2.llama.settings import GenerationSettings, generation_problems


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be a whole number, 1 or more"),
        ({"max_new_tokens": 8.0}, "max_new_tokens is 8.0; it must be a whole number, 1 or more"),
        ({"temperature": -0.1}, "temperature is -0.1; it must be a number, 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan; it must be a number, 0 or more"),
        ({"temperature": True}, "temperature is True; it must be a number, 0 or more"),
        ({"top_k": -1}, "top_k is -1; it must be a whole number, 0 or more"),
        ({"top_p": 0}, "top_p is 0; it must be a number above 0 and at most 1"),
        ({"top_p": 1.2}, "top_p is 1.2; it must be a number above 0 and at most 1"),
        ({"num_beams": "4"}, "num_beams is '4'; it must be a whole number, 1 or more"),
        ({"length_penalty": None}, "length_penalty is None; it must be a number"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be a number above 0"),
        ({"stop": ["\n", ""]}, r"stop is ['\n', '']; it must be one text or a list of texts, none of them empty"),
        ({"seed": -1}, "seed is -1; it must be a whole number, 0 or more"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number, 1 or more"),
        ({"temprature": 1}, "temprature is no generation setting; there are max_new_tokens, temperature, top_k"),
        ({"num_beams": 4, "temperature": 0.7}, "num_beams is 4 with temperature 0.7, but beam search draws nothing"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message):
    [problem] = generation_problems(settings)
    assert problem.startswith(message)
    with pytest.raises(UserError):
        GenerationSettings.checked(settings)


def test_all_problems_are_named_together():
    with pytest.raises(UserError, match="^top_p is 0; .*; seed is 1.5; [^\n]*$"):
        GenerationSettings.checked({"top_p": 0, "seed": 1.5, "temperature": 1})


def test_good_settings_pass():
    settings = {"max_new_tokens": 8, "temperature": 1, "top_k": 5, "top_p": 0.9, "stop": "###", "batch_size": 4}
    assert not generation_problems(settings)
    assert GenerationSettings.checked(settings) == GenerationSettings(8, 1, 5, 0.9, stop=("###",))
    assert GenerationSettings.checked({}) == GenerationSettings()
