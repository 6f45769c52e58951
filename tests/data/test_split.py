from lav2.data.split import validation_keys


def test_validation_split():
    keys = [f"{number}.jpg" for number in range(2000)]
    held_out = validation_keys(keys, 0.05, seed=0)
    assert 60 < len(held_out) < 140
    assert validation_keys(reversed(keys), 0.05, seed=0) == held_out
    assert validation_keys(keys, 0.05, seed=1) != held_out
    # a key stays on its side whatever is added or taken away
    assert validation_keys(keys + [f"new {n}" for n in range(500)], 0.05, seed=0) & set(keys) == held_out
    assert validation_keys(keys[:1000], 0.05, seed=0) == held_out & set(keys[:1000])
    assert len(validation_keys(keys[:3], 1e-9, seed=0)) == 1
    assert validation_keys(keys, 0, seed=0) == set() == validation_keys(keys[:1], 0.5, seed=0)
