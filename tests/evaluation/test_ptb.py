"""The tokenizer gives what COCO's Java tokenizer gives."""

import json
from pathlib import Path

import pytest

from lav2.evaluation.ptb import tokenize

# Captions and their tokens as the Java tokenizer (pycocoevalcap 1.2, CoreNLP 3.4.1) gives them, one caption at a time.
EXPECTED = [
    ("A man on T.V.", "a man on t.v."),
    ("The T.V. is on, he said.", "the t.v. is on he said"),
    ("Corner of Elm St. and 12th Ave S.", "corner of elm st. and 12th ave s."),
    ("A bus at Lane K.", "a bus at lane k."),
    ("Mr. Smith vs. Dr. Jones Jr. etc.", "mr. smith vs. dr. jones jr. etc."),
    ("Sign No. 5, but there is no.", "sign no. 5 but there is no"),
    ("U.S. Army and N.Y.C. at 5 p.m.", "u.s. army and n.y.c. at 5 p.m."),
    ("A Ph.D. student, e.g. J. K. Rowling", "a ph.d. student e.g. j. k. rowling"),
    ("He said \"hello\" to 'them'.", "he said hello to them"),
    ("\u201ccurly\u201d \u2018quotes\u2019 and it\u2019s ok, don\u2019t", "curly quotes and it 's ok do n't"),
    ("`back' ``ticks''", "back ticks"),
    ("It's John's dogs' bowl; they've eaten, haven't they?", "it 's john 's dogs bowl they 've eaten have n't they"),
    ("I cannot, gonna, WANNA, gimme, gotta, lemme", "i can not gon na wan na gim me got ta lem me"),
    ("'Tis the o'clock 'n' rock'n'roll of '90s y'all", "'t is the o'clock 'n' rock 'n' roll of '90s y' all"),
    ("O'Neil's Xi'an d'Artagnan ma'am c'mon s'mores ol' 'em", "o'neil 's xi'an d'artagnan ma'am c'mon s'mores ol' 'em"),
    ("won't can't shan't I'd've", "wo n't ca n't sha n't i 'd ve"),
    (
        "Price: $5.00, \xa33, \u20ac4, \xa57 or 50\xa2; US$10 and 10%",
        "price $ 5.00 # 3 $ 4 \xa5 7 or 50 cents us$ 10 and 10 %",
    ),
    (
        "22 3/4 inches, 22\xa03/4 inches, \xbd cup and 1\xbd cups",
        "22\xa03/4 inches 22\xa03/4 inches 1/2 cup and 1 1/2 cups",
    ),
    ("at 5:54pm or 10:10 a.m.", "at 5:54 pm or 10:10 a.m."),
    ("1,000 men, 3.5 cats, -5 to +5, .22, 1.2.3, 12/25/2004", "1,000 men 3.5 cats -5 to +5 .22 1.2.3 12/25/2004"),
    ("Call 555-1234, (555) 123-4567 or 555 123 4567.", "call 555-1234 -lrb-555-rrb-\xa0123-4567 or 555\xa0123\xa04567"),
    ('5\'9" tall and 6ft, 8x10", 45\xb0 angle, 45-degree', "5 9 tall and 6ft 8x10 45 \xb0 angle 45-degree"),
    ("state-of-the-art t-shirt, two-year-old, 7-Eleven", "state-of-the-art t-shirt two-year-old 7-eleven"),
    ("Wait... what.... and \u2026 end", "wait what and end"),
    ("A -- dash - and \u2014 em \u2013 en----long", "a dash and em en long"),
    ("What?! No!!! Yes? OK!", "what ?! no !!! yes ok"),
    ("(a) [b] {c} <d> <b>bold</b> < e >", "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb- <d> <b> bold </b> < e >"),
    ("and/or w/ b/w either/or/neither", "and/or w / b/w either/or/neither"),
    ("AT&T, R&D, Q&A; salt & pepper, M&M's &amp; &lt;", "at&t r&d q&a salt & pepper m&m 's & <"),
    (
        "See http://www.example.com/foo?x=1, www.foo.com, foo.com.",
        "see http://www.example.com/foo?x=1 www.foo.com foo.com",
    ),
    ("Mail foo.bar@example.com or @user about #cats", "mail foo.bar@example.com or @user about #cats"),
    (":-) :( ;) :D =) <3 ^_^", ":--rrb- :-lrb- ;-rrb- :d =-rrb- < 3 ^_^"),
    (
        "\U0001f600 happy \U0001f600\U0001f600face \u2603 \u2665 \u2605 \u2192 \u2122 \xd72 H\u2082O",
        "happy face \u2603 \u2665 \u2605 \u2192 \u2122 \xd7 2 h \u2082 o",
    ),
    (
        "caf\xe9 na\xefve Zo\xeb's Z\xfcrich-based \u65e5\u672c\u8a9e \u043f\u0440\u0438\u0432\u0435\u0442",
        "caf\xe9 na\xefve zo\xeb 's z\xfcrich-based \u65e5\u672c\u8a9e \u043f\u0440\u0438\u0432\u0435\u0442",
    ),
    (
        "C++ c# *bold* **b** under_score a_b ~x^2 a+b=c \\ |",
        "c++ c# * bold * ** b ** under_score a_b ~ x ^ 2 a + b = c \\ |",
    ),
    ("dog.The cat!and,mouse;bird", "dog.the cat!and mouse bird"),
    ("no-break\xa0space and\ttab  double", "no-break space and tab double"),
    ("soft\xadhyphen co\u2010op", "softhyphen co\u2010op"),
    ("a.b.c main.py File.TXT x.1", "a.b.c main.py file.txt x. 1"),
    ('""" ... ; :', ""),
    ("", ""),
    (" . ", ""),
    ("two\nlines", "two lines"),
]


def java_tokens(captions: list[str]) -> list[list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenized = PTBTokenizer().tokenize({0: [{"caption": caption} for caption in captions]})[0]
    return [[token for token in line.split(" ") if token] for line in tokenized]


@pytest.mark.parametrize(("caption", "tokens"), EXPECTED)
def test_expected_tokens(caption: str, tokens: str):
    assert tokenize([caption]) == [[token for token in tokens.split(" ") if token]]


def test_the_next_caption_ends_a_sentence_or_not():
    assert tokenize(["Lane K.", "The bus"])[0] == ["lane", "k"]
    assert tokenize(["Lane K.", "Bus"])[0] == ["lane", "k."]


def test_captions_stay_apart():
    assert tokenize(["", "a\nb\r\nc", "", "<a", "b>", "\u2028"]) == [
        [],
        ["a", "b", "c"],
        [],
        ["<", "a"],
        ["b", ">"],
        [],
    ]
    assert tokenize([]) == []


def test_nasty_captions_like_java(java):
    captions = [caption for caption, _ in EXPECTED]
    assert tokenize(captions) == java_tokens(captions)


def test_coco_captions_like_java(java, real_data: Path):
    file = real_data / "coco" / "annotations" / "captions_val2017_first4000.json"
    captions = [annotation["caption"] for annotation in json.loads(file.read_text())["annotations"]]
    assert len(captions) == 20_013
    ours, theirs = tokenize(captions), java_tokens(captions)
    assert len(theirs) == len(captions)
    different = [(caption, *pair) for caption, *pair in zip(captions, ours, theirs, strict=True) if pair[0] != pair[1]]
    assert different == []


def test_instructions_like_java(java, real_data: Path):
    samples = json.loads((real_data / "instructions" / "alpaca_gpt4_700.json").read_text())
    lines = [line for sample in samples for text in sample.values() for line in text.splitlines()]
    assert tokenize(lines) == java_tokens(lines)
