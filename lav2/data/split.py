"""What is held out for validation."""

import hashlib
from collections.abc import Iterable


def validation_keys(keys: Iterable[str], fraction: float, seed: int) -> set[str]:
    """The keys held out for validation: about ``fraction`` of them, at least one (unless the fraction is 0).

    Each key is chosen by its own hash, so it stays on its side whatever else is added to the data.
    """
    keys = set(keys)
    if fraction == 0 or len(keys) < 2:
        return set()
    # 8 bytes of hash as a fraction of all their values
    score = {
        key: int.from_bytes(hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest(), "big") / 2**64
        for key in keys
    }
    return {key for key in keys if score[key] < fraction} or {min(keys, key=lambda key: (score[key], key))}
