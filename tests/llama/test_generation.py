"""Generated answers against transformers' generate, and their independence of the batch."""

import pytest
import torch

from lav2.errors import UserError
from lav2.llama import load_llama
from lav2.llama.generation import generate, stream

PROMPTS = [[1, 5, 9, 20, 7, 11, 6], [1, 14], [1, 8, 8, 16]]
ENDS = list(range(2, 12))  # so many that rows end at different times


def decode(ids):
    """A stand-in for a tokenizer: token n is the n-th letter, and 26 a space."""
    return "".join("abcdefghijklmnopqrstuvwxyz "[token % 27] for token in ids)


@pytest.fixture(scope="module", params=range(3))
def peers(request, tmp_path_factory):
    """A random LLaMA of transformers with few tokens, so that end tokens come up, and ours with the same weights."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11+)")
    torch.manual_seed(request.param)
    config = transformers.LlamaConfig(
        vocab_size=27,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("llama")
    theirs.save_pretrained(folder)
    return theirs, load_llama(folder)


def expected_answers(theirs, prompts, ends, **settings):
    """What transformers generates for left-padded prompts, without end tokens."""
    length = max(map(len, prompts))
    tokens = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    rows = theirs.generate(
        tokens, attention_mask=mask, do_sample=False, eos_token_id=ends, pad_token_id=0, max_new_tokens=12, **settings
    )
    answers = [row[length:].tolist() for row in rows]
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in answers]


@pytest.mark.parametrize("ends", [[2], [2, 5, 9]], ids=str)
def test_greedy_answers_equal_transformers(peers, ends):
    theirs, ours = peers
    assert generate(ours, PROMPTS, eos_id=ends, max_new_tokens=12) == expected_answers(theirs, PROMPTS, ends)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_penalized_answers_equal_transformers(peers, num_beams):
    """Row by row: in a batch transformers penalizes its padding as well."""
    theirs, ours = peers
    settings = {"repetition_penalty": 1.4, "num_beams": num_beams}
    expected = [expected_answers(theirs, [prompt], [2], **settings)[0] for prompt in PROMPTS]
    assert generate(ours, PROMPTS, eos_id=2, max_new_tokens=12, **settings) == expected
    assert expected != expected_answers(theirs, PROMPTS, [2], num_beams=num_beams)


@pytest.mark.parametrize("ends", [[2], [2, 5, 9], ENDS], ids=str)
@pytest.mark.parametrize("length_penalty", [-1.0, 1.0, 2.5])
@pytest.mark.parametrize("num_beams", [2, 5])
def test_beams_equal_transformers(peers, num_beams, length_penalty, ends):
    theirs, ours = peers
    settings = {"num_beams": num_beams, "length_penalty": length_penalty}
    expected = expected_answers(theirs, PROMPTS, ends, **settings)
    assert generate(ours, PROMPTS, eos_id=ends, max_new_tokens=12, **settings) == expected


def test_beams_with_an_adapter_do_not_depend_on_the_batch(adapted, features):
    def answer(prompts, images):
        hooks = adapted.bind(images, keep=True)
        return generate(adapted.llama, prompts, eos_id=ENDS, hooks=hooks, max_new_tokens=25, num_beams=4)

    together = answer(PROMPTS, features)
    assert together == [answer([prompt], features[row : row + 1])[0] for row, prompt in enumerate(PROMPTS)]
    assert together != answer(PROMPTS, features.flip(0))
    assert len({len(ids) for ids in together}) > 1  # some left the batch before the others


def test_ended_rows_cost_nothing(adapted, features, monkeypatch):
    """Rows leave the batch when half have ended, and the others, with their images and padding, go on as before."""
    prompts, images = PROMPTS * 2, features.repeat(2, 1, 1)
    sizes = []
    blocks = adapted.llama.blocks

    def counted(tokens, *context):
        sizes.append(len(tokens))
        return blocks(tokens, *context)

    monkeypatch.setattr(adapted.llama, "blocks", counted)
    for seed in range(4):
        settings = {"eos_id": ENDS, "max_new_tokens": 25, "temperature": 1.0, "seed": seed}
        hooks = adapted.bind(images, keep=True)
        together = generate(adapted.llama, prompts, hooks=hooks, **settings)
        for row, prompt in enumerate(prompts):
            alone = adapted.bind(images[row : row + 1], keep=True)
            assert generate(adapted.llama, [prompt], hooks=alone, rows=[row], **settings) == [together[row]]
        assert generate(adapted.llama, prompts, hooks=hooks, **settings) == together  # what was bound is still whole
    assert {6, 3, 1} <= set(sizes)


def test_draws_are_seeded_and_each_row_has_its_own(llama):
    settings = {"eos_id": 49, "max_new_tokens": 20, "temperature": 1.5, "top_k": 30, "top_p": 0.95}
    prompts = [[1, 2, 3]] * 4
    answers = generate(llama, prompts, seed=3, **settings)
    assert answers == generate(llama, prompts, seed=3, **settings) != generate(llama, prompts, seed=4, **settings)
    assert len(set(map(tuple, answers))) == 4
    assert generate(llama, prompts[:2], rows=[3, 1], seed=3, **settings) == [answers[3], answers[1]]
    longer = generate(llama, prompts, seed=3, **settings | {"max_new_tokens": 33})
    assert [ids[:20] for ids in longer] == answers
    greedy = generate(llama, prompts, eos_id=49, max_new_tokens=20)
    assert generate(llama, prompts, seed=3, **settings | {"top_k": 1}) == greedy


def test_the_context_limits_each_row_by_itself(llama):
    """The model has 64 positions: prompt and answer fill them, whatever the length of other prompts."""
    for settings in ({}, {"num_beams": 2}):
        long, short = generate(llama, [[1] * 63, [1, 2]], eos_id=[], max_new_tokens=30, **settings)
        assert len(long) == 1 and len(short) == 30
        assert short == generate(llama, [[1, 2]], eos_id=[], max_new_tokens=30, **settings)[0]
    assert len(generate(llama, [[1, 2]], eos_id=[], max_new_tokens=1000)[0]) == 62


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[1], [1] * 64], {}, "row 1: a prompt of 64 tokens leaves no room in a model of 64: shorten the input"),
        ([[1], []], {}, "row 1: the prompt is empty"),
        ([[1]], {"top_p": 2}, "top_p is 2"),
        ([[1]], {"stop": "a"}, "give decode="),
    ],
)
def test_what_cannot_be_generated_is_refused(llama, prompts, settings, message):
    with pytest.raises(UserError, match=message):
        generate(llama, prompts, eos_id=2, **settings)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"num_beams": 3}], ids=str)
def test_an_answer_ends_with_the_token_that_completes_a_stop_text(llama, settings):
    settings |= {"eos_id": [], "max_new_tokens": 30, "decode": decode}
    [free] = generate(llama, [[1, 2, 3]], **settings)
    stop = decode(free)[6:9]
    [stopped] = generate(llama, [[1, 2, 3]], stop=["#", stop], **settings)
    assert decode(stopped).endswith(stop) and decode(stopped).index(stop) == len(stopped) - len(stop)
    if "num_beams" not in settings:
        assert stopped == free[: len(stopped)]


def test_a_stream_is_the_answer_and_can_be_closed(llama, monkeypatch):
    settings = {"eos_id": 49, "max_new_tokens": 30, "temperature": 1.0}
    [whole] = generate(llama, [[1, 2, 3]], **settings)
    steps = []
    blocks = llama.blocks
    monkeypatch.setattr(llama, "blocks", lambda *context: steps.append(0) or blocks(*context))
    assert "".join(stream(llama, [1, 2, 3], decode, **settings)) == decode(whole).strip()
    assert len(steps) == len(whole)

    steps.clear()
    answer = stream(llama, [1, 2, 3], decode, **settings)
    start = next(answer) + next(answer)
    answer.close()
    assert decode(whole).startswith(start) and 0 < len(steps) < 6
    assert not torch.is_inference_mode_enabled()


def test_a_wrong_stream_is_refused_at_the_call(llama):
    with pytest.raises(UserError, match="num_beams is 2, but beam search cannot be streamed"):
        stream(llama, [1], decode, eos_id=2, num_beams=2)
    with pytest.raises(UserError, match="leaves no room"):
        stream(llama, [1] * 64, decode, eos_id=2)
