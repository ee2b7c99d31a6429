"""Which things are held out: decided by the name, so that it is the same in every source and on every machine."""

import hashlib

_TEST, _VALIDATION = 15, 6
"""Per cent of the names."""


def split_of(name: str) -> str:
    """`train`, `validation` or `test`, the same for all that have the same name: what is held out was never named."""
    draw = int.from_bytes(hashlib.sha256(name.casefold().encode()).digest()[:4], "big") % 100
    return "test" if draw < _TEST else "validation" if draw < _TEST + _VALIDATION else "train"
