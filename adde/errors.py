"""The one exception whose message is meant for the person at the keyboard."""

import difflib
import importlib
import io
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

LONGEST = 500


class UserError(Exception):
    """Input or environment is wrong; the message says what, expected, found, and what to do."""


@contextmanager
def foreign(where: object, expected: str, advice: str = "") -> Generator[None]:
    """Turns whatever a library raises at bytes of others into a UserError that names them.

    Decoders have no list of what they raise: beside their own errors come TypeError, struct.error,
    MemoryError, RecursionError, each from the one odd file in a million.

    Args:
        where: file, or place in it.
        expected: what it should have been, such as "a picture that decodes".
        advice: what to do.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        end = f"; {advice}" if advice else ""
        raise UserError(f"{where}: expected {expected}, found: {reason(error)}{end}") from None


def library(name: str, extra: str) -> Any:
    """Imports a module that an extra of the package installs. Raises UserError where it is not."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"expected {name.split('.')[0]}, found none; pip install 'adde[{extra}]'"
        ) from None


def reason(error: Exception) -> str:
    """What an exception says, in a line of at most LONGEST characters; with its kind, where that is
    not made for people to read.
    """
    told = " ".join(str(error).split())
    told = told if len(told) <= LONGEST else f"{told[:LONGEST]} ..."
    plain = isinstance(error, OSError | ValueError | SyntaxError) and told
    return told if plain else f"{type(error).__name__}: {told}".removesuffix(": ")


def did_you_mean(found: str, valid: Iterable[str], limit: int = 5) -> str:
    """Names the valid words nearest to `found`, or all of them where none is near."""
    words = list(valid)
    near = difflib.get_close_matches(found, words, n=limit, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(word) for word in near) + "?"
    shown = ", ".join(repr(word) for word in words[:20])
    return f"valid: {shown}" + (", ..." if len(words) > 20 else "")


def run_program(main: Callable[[], None]) -> None:
    """Runs a program's `main`; a `UserError` or a full disk becomes one line and exit status 1.

    What the terminal or the log has no letters for is printed as escapes: a value with an umlaut
    must not end a program that has done its work.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
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
