"""The errors a caller can meet, under one base.

Each message says what was given, what was expected and what to do next. Text of third-party decoders is never
echoed: it helps nobody and has leaked memory addresses before (CVE-2026-22778).
"""


class BindLMError(Exception):
    """Base of every error that `bindlm` raises on purpose."""


class MediaError(BindLMError, ValueError):
    """A picture, sound or other medium cannot be used: the name of the medium and the reason are in the message."""


class CheckpointError(BindLMError, OSError):
    """Weights cannot be had or do not fit: which file, which key, and where to get the right one."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ConfigError(BindLMError, ValueError):
    """A setting is impossible: the field, the rule and the value."""


class TrainingError(BindLMError, RuntimeError):
    """Training cannot go on: the step, the reason, and the last good checkpoint."""
