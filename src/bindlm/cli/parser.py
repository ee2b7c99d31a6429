"""argparse with our error form, exact option names, and help whose line breaks stay."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any, NoReturn

from bindlm.cli.output import print_error


class Parser(ArgumentParser):
    """Prints a usage error as `bindlm: error: …` with a hint, and ends with exit code 2."""

    speaks_for: str | None = None
    """The verb whose help the hint names, where it is not in `prog` itself."""

    takes_options_between = False
    """Whether options may stand between the words of a verb: `bindlm search "a dog" --top-k 3 photos`. argparse would
    take the first word for the folder, since the words before it may be left out."""

    def __init__(self, **options: Any) -> None:
        # A shortened option would change its meaning on the day a longer one is added.
        super().__init__(allow_abbrev=False, formatter_class=RawDescriptionHelpFormatter, **options)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> tuple[Namespace, list[str]]:
        if not self.takes_options_between:
            return super().parse_known_args(args, namespace)
        self.takes_options_between = False  # the call below comes back here, before Python 3.13 twice
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.takes_options_between = True

    def error(self, message: str) -> NoReturn:
        command = f"{self.prog} {self.speaks_for}" if self.speaks_for else self.prog
        print_error(f"{message}\nsee: {command} --help")
        raise SystemExit(2)
