"""UserError, whose message is meant for the user, and helpers that produce such messages."""

import difflib
import importlib
import io
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

MAX_REASON_LENGTH = 500
"""Characters."""


class UserError(Exception):
    """Wrong input or environment; the message says what was expected and found, and what to do."""


@contextmanager
def untrusted(where: object, expected: str, advice: str = "") -> Generator[None]:
    """Turn any exception that a library raises on untrusted input into a UserError.

    Decoders do not document what they raise. Besides their own errors, damaged files cause
    TypeError, struct.error, MemoryError or RecursionError.

    Args:
        where: file, or position in it.
        expected: what the input should have been, such as "a picture that decodes".
        advice: what the user can do.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        end = f"; {advice}" if advice else ""
        raise UserError(f"{where}: expected {expected}, found: {reason(error)}{end}") from None


def library(name: str, extra: str) -> Any:
    """Import a module that an extra installs. Raises UserError if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"expected {name.split('.')[0]}, found none; pip install 'adde[{extra}]'"
        ) from None


def reason(error: Exception) -> str:
    """Return an exception's message as one line of at most MAX_REASON_LENGTH characters.

    The exception's type precedes a message that is not written for users.
    """
    told = " ".join(str(error).split())
    told = told if len(told) <= MAX_REASON_LENGTH else f"{told[:MAX_REASON_LENGTH]} ..."
    plain = isinstance(error, OSError | ValueError | SyntaxError) and told
    return told if plain else f"{type(error).__name__}: {told}".removesuffix(": ")


def did_you_mean(found: str, valid: Iterable[str], limit: int = 5) -> str:
    """Suggest the valid words closest to `found`, or list all if none is close."""
    words = list(valid)
    near = difflib.get_close_matches(found, words, n=limit, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(word) for word in near) + "?"
    shown = ", ".join(repr(word) for word in words[:20])
    return f"valid: {shown}" + (", ..." if len(words) > 20 else "")


def run_program(main: Callable[[], None]) -> None:
    """Run a program's `main`; report a UserError or OSError in one line with exit status 1.

    Characters that the output's encoding lacks are printed as escapes: a value with an umlaut must
    not crash a program that has done its work.
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
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        raise SystemExit(1) from error
