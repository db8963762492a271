"""The error of options that cannot work, and the form in which every script prints an error."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable


class OptionError(ValueError):
    """Options that cannot work, alone or together. The message is one line."""


def unknown(problem: str, name: str, known: Iterable[str]) -> OptionError:
    """Returns the error of a name that is not a known one.

    Args:
        problem: The start of the message, such as "there is no study 'sise'".
        name: The name.
        known: The names to choose from. The message asks for the nearest and lists all.
    """
    known = list(known)
    near = did_you_mean(name, known) or "."
    return OptionError(f"{problem}{near} Choose from {listed(known)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the nearest of the known names as "; did you mean …?", or "" if none is near."""
    # The dashes of all options are alike, and case is seldom what is meant.
    words = {each.lstrip("-").lower(): each for each in known}
    word = name.lstrip("-").lower()
    near = [word] if word in words else []
    near = near or [each for each in words if word and each.startswith(word)][:3]
    near = near or difflib.get_close_matches(word, words, n=2, cutoff=0.65)
    return f"; did you mean {listed([words[each] for each in near], ' or ')}?" if near else ""


def listed(names: Iterable[str], separator: str = ", ") -> str:
    """Returns the names in a list, in quotes those with a space."""
    return separator.join(repr(name) if " " in name else name for name in names)


def printable(text: object) -> str:
    """Returns a text with escapes for all characters that cannot be shown in a line.

    These are line breaks, control characters, and the bytes of a file's name that are not UTF-8.
    """
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(text)
    )


def fail(error: object, code: int = 2) -> int:
    """Prints an error on stderr, in one line, and returns the exit code."""
    print(f"error: {printable(error)}", file=sys.stderr)
    return code
