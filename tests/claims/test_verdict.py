"""The rule for a verdict, on made-up effects: each word can be reached, and a sign that flips is never overlooked."""

import pytest

from lav2.claims.verdict import NOT_DECIDABLE, NOT_REPRODUCED, REPRODUCED, judge

WORSE = [0.5, 0.4, 0.6]


def shifted(*effects):
    return [value + effect for value, effect in zip(WORSE, effects, strict=True)]


CASES = {
    "far beyond the spread": (shifted(0.2, 0.21, 0.19), {}, REPRODUCED),
    "as far in the other direction": (shifted(-0.2, -0.21, -0.19), {}, NOT_REPRODUCED),
    "one seed against it": (shifted(0.3, 0.3, -0.01), {}, NOT_REPRODUCED),
    "the sign in every seed, within two spreads": (shifted(0.01, 0.3, 0.1), {}, NOT_REPRODUCED),
    "no effect at all": (shifted(0, 0, 0), {}, NOT_REPRODUCED),
    "nothing to lose": (shifted(0.2, 0.21, 0.19), {"at_least": 0.9}, NOT_DECIDABLE),
    "enough to lose": (shifted(0.2, 0.21, 0.19), {"at_least": 0.6}, REPRODUCED),
    "a smaller loss, as claimed": (shifted(-0.2, -0.21, -0.19), {"lower": True}, REPRODUCED),
    "a larger loss": (shifted(0.2, 0.21, 0.19), {"lower": True}, NOT_REPRODUCED),
    "a worse arm that has learnt": (shifted(-0.3, -0.3, -0.3), {"at_least": 0.3}, NOT_REPRODUCED),
    "the same, as claimed": (shifted(0, 0, 0), {"equal": True}, REPRODUCED),
    "not the same": (shifted(0, 0, 1e-9), {"equal": True}, NOT_REPRODUCED),
}


@pytest.mark.parametrize("case", CASES)
def test_each_verdict_can_be_reached(case):
    better, settings, expected = CASES[case]
    assert judge(better, WORSE, **settings).word == expected


def test_pairing_by_seed_takes_out_what_seeds_share():
    """The arms' own spreads overlap; the paired effect does not."""
    assert judge([0.2, 0.5, 0.8], [0.1, 0.41, 0.69]).word == REPRODUCED
    assert judge([0.8, 0.2, 0.5], [0.1, 0.41, 0.69]).word == NOT_REPRODUCED


@pytest.mark.parametrize("effects", [[], [0.5], [0.5, 0.5]])
def test_fewer_than_three_seeds_decide_nothing(effects):
    verdict = judge(effects, [0.0] * len(effects))
    assert verdict.word == NOT_DECIDABLE and verdict.reason == f"{len(effects)} of 3 seeds"
    assert (verdict.mean is None) == (not effects) and (verdict.spread is None) == (len(effects) < 2)


def test_mean_and_spread_are_of_the_effects():
    verdict = judge([3.0, 4.0, 5.0], [1.0, 1.0, 1.0])
    assert verdict.mean == 3 and verdict.spread == 1 and "sign in every seed" in verdict.reason
