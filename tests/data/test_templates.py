import pytest

from lav2.data.templates import Template
from lav2.errors import UserError


def test_alpaca_without_input():
    assert Template().prompt("Give three tips.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nGive three tips.\n\n### Response:"
    )


def test_alpaca_with_input():
    assert Template("alpaca").prompt("Translate.", "Hallo") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nTranslate.\n\n### Input:\nHallo\n\n### Response:"
    )


def test_short():
    assert Template("short").prompt("Translate.", "Hallo") == (
        "### Instruction:\nTranslate.\n\n### Input:\nHallo\n\n### Response:"
    )
    assert Template("short").prompt("Go.") == "### Instruction:\nGo.\n\n### Response:"


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_blank_input_is_no_input(blank):
    assert Template().prompt("Go.", blank) == Template().prompt("Go.")


def test_unknown_kind():
    with pytest.raises(UserError, match="alpaca, short"):
        Template("vicuna")
