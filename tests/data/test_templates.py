"""Templates as text: against what is published of each, and transformers' rendering of the chat templates."""

import pytest

from lav2.data.examples import Turn
from lav2.data.templates import STYLES, Segment, Template, choose_template
from lav2.errors import UserError

# As published with Llama 2 Chat, Llama 3 Instruct, and for ChatML
JINJA = {
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama3": "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}
CONVERSATION = [Turn("Hi!", "", "Hello."), Turn("Count to {two}.", "", "1, 2"), Turn("Bye", "", "Good bye.")]


def text(segments: list[Segment]) -> str:
    return "".join("<s>" * s.bos + s.text + "</s>" * s.eos for s in segments)


def messages(turns, system=""):
    listed = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        listed.append({"role": "user", "content": turn.instruction})
        if turn.response is not None:
            listed.append({"role": "assistant", "content": turn.response})
    return listed


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("kind", JINJA)
def test_chat_templates_as_transformers_renders_them(kind, system):
    pytest.importorskip("transformers")
    from transformers.utils.chat_template_utils import render_jinja_template

    for turns in (CONVERSATION, CONVERSATION[:1], [*CONVERSATION[:2], Turn("Why?")]):
        is_open = turns[-1].response is None
        (expected,), _ = render_jinja_template(
            [messages(turns, system)],
            chat_template=JINJA[kind],
            add_generation_prompt=is_open,
            bos_token="<s>",
            eos_token="</s>",
        )
        if not is_open and kind == "chatml":
            expected = expected.removesuffix("\n")  # nothing is left to learn from it
        assert text(Template(kind).render(turns, system)) == expected


def test_vicuna():
    """The chat format of the authors' V2 model, without their example exchange."""
    assert text(Template("vicuna").render(CONVERSATION[:2])) == (
        "<s>A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions.###Human: Hi!###Assistant: Hello.###"
        "Human: Count to {two}.###Assistant: 1, 2###"
    )
    assert text(Template("vicuna").render(CONVERSATION[:1], "Be brief.")).startswith("<s>Be brief.###Human: Hi!###")
    prompt = Template("vicuna").prompt("Translate.", "Hallo")
    assert prompt.startswith("A chat between") and prompt.endswith("###Human: Translate.\nHallo###Assistant:")


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


def test_plain_and_lavin():
    assert Template("plain").prompt("Generate caption of this image :") == "Generate caption of this image :"
    assert Template("plain").prompt("Translate.", "Hallo") == "Translate.\nHallo"
    assert Template("lavin").prompt("Go.") == "Instruction: Go.\nResponse:"
    assert Template("lavin").prompt("Translate.", "Hallo") == "Instruction: Translate.\nHallo\nResponse:"


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_blank_input_is_no_input(blank):
    assert Template().prompt("Go.", blank) == Template().prompt("Go.")


def test_a_conversation_in_an_instruct_template_repeats_its_blocks():
    segments = Template("alpaca").render(CONVERSATION[:2])
    assert text(segments) == (
        f"<s>{Template().prompt('Hi!')}Hello.</s>### Instruction:\nCount to {{two}}.\n\n### Response:1, 2</s>"
    )
    assert text(Template("short").render(CONVERSATION[:1], "Be brief.")) == (
        "<s>Be brief.\n\n### Instruction:\nHi!\n\n### Response:Hello.</s>"
    )


@pytest.mark.parametrize("kind", STYLES)
def test_only_answers_and_what_ends_them_are_supervised(kind):
    template = Template(kind)
    supervised = "".join(s.text for s in template.render(CONVERSATION, "Be brief.") if s.supervised)
    answers = [turn.response for turn in CONVERSATION]
    assert supervised.replace(" ", "") == "".join(answer + template.stop for answer in answers).replace(" ", "")
    assert sum(s.eos for s in template.render(CONVERSATION)) == (0 if template.stop else 3)
    prompt = template.render([*CONVERSATION[:1], Turn("And now?")])
    assert not prompt[-1].supervised and text(prompt).startswith(text(template.render(CONVERSATION[:1])))


@pytest.mark.parametrize("kind", STYLES)
def test_users_text_is_never_a_control_token(kind):
    """Nor a slot of the template."""
    odd = "<|im_end|> {question} {answer} {system} <|eot_id|>"
    segments = Template(kind).render([Turn(odd, odd, odd), Turn(odd, "", odd)], odd)
    assert not any(odd in s.text for s in segments if s.control)
    assert text(segments).count(odd) == 6


def test_families():
    class Vocabulary:
        def __init__(self, *names):
            self.names = names

        def token_id(self, name):
            return self.names.index(name) if name in self.names else None

    chatml, llama3 = ["<|im_start|>", "<|im_end|>"], ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    assert choose_template("family", Vocabulary(*chatml)).kind == "chatml"
    assert choose_template("family", Vocabulary(*llama3)).kind == "llama3"
    assert choose_template("family", Vocabulary("<s>")).kind == "vicuna"
    assert choose_template("alpaca", Vocabulary(*chatml)).kind == "alpaca"
    with pytest.raises(UserError, match=r"template is 'llama3', but the tokenizer has no token <\|eot_id\|>"):
        choose_template("llama3", Vocabulary(*llama3[:2]))


def test_unknown_kind():
    with pytest.raises(UserError, match="alpaca, short"):
        Template("long")
