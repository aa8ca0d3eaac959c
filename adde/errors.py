"""The one exception whose message is meant for the person at the keyboard."""

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Input or environment is wrong; the message says what, expected, found, and what to do."""


def did_you_mean(found: str, valid: Iterable[str], limit: int = 5) -> str:
    """Names the valid words nearest to `found`, or all of them where none is near."""
    words = list(valid)
    near = difflib.get_close_matches(found, words, n=limit, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(word) for word in near) + "?"
    shown = ", ".join(repr(word) for word in words[:20])
    return f"valid: {shown}" + (", ..." if len(words) > 20 else "")


def run_program(main: Callable[[], None]) -> None:
    """Runs a program's `main`; a `UserError` or a full disk becomes one line and exit status 1."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except OSError as error:
        # Anything else the disk refused: the path and the reason are what helps.
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        raise SystemExit(1) from error
