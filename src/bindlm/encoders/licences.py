"""What users of non-commercial weights are told, once a process, when they load them."""

import warnings

_told: set[str] = set()


class LicenceWarning(UserWarning):
    """The terms of published weights; a class of its own so that a program can show it and nothing else."""


def tell_licence(name: str, terms: str) -> None:
    """Warn about the terms of published weights the first time they are loaded.

    Args:
        name: what is loaded.
        terms: one sentence.
    """
    if name not in _told:
        _told.add(name)
        warnings.warn(f"{name}: {terms}", LicenceWarning, stacklevel=3)
