"""argparse with our error form, exact option names, and help whose line breaks stay."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import Any, NoReturn

from bindlm.cli.output import print_error


class Parser(ArgumentParser):
    """Prints a usage error as `bindlm: error: …` with a hint, and ends with exit code 2."""

    speaks_for: str | None = None
    """The verb whose help the hint names, where it is not in `prog` itself."""

    def __init__(self, **options: Any) -> None:
        # A shortened option would change its meaning on the day a longer one is added.
        super().__init__(allow_abbrev=False, formatter_class=RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        command = f"{self.prog} {self.speaks_for}" if self.speaks_for else self.prog
        print_error(f"{message}\nsee: {command} --help")
        raise SystemExit(2)
