"""What the command prints: results to stdout, everything else to stderr."""

import json
import os
import sys
from typing import Any


def is_debugging() -> bool:
    """Whether BINDLM_DEBUG asks for tracebacks and for what the libraries have to say."""
    return os.environ.get("BINDLM_DEBUG", "") not in ("", "0")


def print_error(message: str, *, kind: str = "error: ") -> None:
    """Print `bindlm: error: message` on stderr; further lines of the message are indented."""
    first, *others = printable(message).split("\n")
    for line in (f"bindlm: {kind}{first}", *(f"  {other}" for other in others)):
        print(line, file=sys.stderr, flush=True)


def say(message: str) -> None:
    """Print a line of progress on stderr."""
    print(f"bindlm: {printable(message)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """``text`` with control characters as escapes: a file's name must not be able to clear the terminal."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode("ascii") for char in text
    )


def print_json(value: Any) -> None:
    """Print one JSON object on a line of stdout, in letters where stdout can show them."""
    can_show = (getattr(sys.stdout, "encoding", "") or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, ensure_ascii=not can_show), flush=True)


class AnswerPrinter:
    """Receives an answer in pieces and shows each on stdout as it comes."""

    def __init__(self) -> None:
        self.has_printed = False

    def __call__(self, piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()
        self.has_printed = self.has_printed or bool(piece)

    def finish(self, text: str) -> None:
        """End the line; an answer that came in no pieces is shown whole."""
        if not self.has_printed:
            sys.stdout.write(text)
        sys.stdout.write("\n")
        sys.stdout.flush()


def close_broken_stdout() -> None:
    """Send what is still buffered nowhere, or Python complains about the broken pipe while it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
