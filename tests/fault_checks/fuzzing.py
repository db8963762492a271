"""What the fuzzers feed with malformed input, and how each answer is judged.

Each target is a function that tries one input and returns what is wrong with the answer, or "". An
answer is right if it is an error of the documented type, in one line, or a value that is equal to
one that is computed in another way.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st


class Target(NamedTuple):
    """Malformed input, and what is done with it.

    Attributes:
        examples: A strategy of inputs.
        attempt: A function that tries an input in a folder, and returns what is wrong, or "".
    """

    examples: st.SearchStrategy[Any]
    attempt: Callable[[Any, Path], str]


def complaint(error: BaseException, documented: Any, *names: object) -> str:
    """Returns what is wrong with an error: its type, or a message that is not a line with names."""
    text = str(error)
    if not isinstance(error, documented) or isinstance(error, UnicodeError):
        return f"{type(error).__name__}: {text[:200]}"
    if "\n" in text or not text:
        return f"a message of several lines, or none: {text[:200]!r}"
    if names and not any(str(name) in text for name in names):
        return f"names none of {', '.join(map(str, names))}: {text[:200]!r}"
    return ""


def said(main: Callable[[], int | None]) -> tuple[int | None, str, str, str]:
    """Calls the main function of a script: exit code, what it prints, and what is wrong."""
    out, err = (
        io.TextIOWrapper(io.BytesIO(), "utf-8", errors, write_through=True)
        for errors in ("strict", "backslashreplace")  # as those of a process
    )
    code: Any
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main()
    except SystemExit as exit:
        code = exit.code
    except Exception as error:
        return None, "", "", f"{type(error).__name__}: {str(error)[:200]}"
    printed, errors = (each.buffer.getvalue().decode() for each in (out, err))
    lines = errors.splitlines()
    problem = ""
    if code not in (None, 0, 1, 2):
        problem = f"exit code {code}"
    elif code and len([line for line in lines if line.startswith("error: ")]) != 1:
        problem = f"exit code {code}, and on stderr {errors[:200]!r}"
    elif any(not line.startswith(("error: ", "warning: ")) for line in lines if code):
        problem = f"more than errors on stderr: {errors[:200]!r}"
    return code, printed, errors, problem


# Integers at the limits of their types and of IDX headers.
EDGES = [0, 1, 2, 3, 27, 28, 29, 255, 2049, 2051, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1]


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """Bytes that are cut, or have other, missing or additional bytes."""
    at = st.integers(0, len(whole) - 1)

    def replace(changes: Sequence[tuple[int, int]]) -> bytes:
        found = bytearray(whole)
        for where, value in changes:
            found[where] = value
        return bytes(found)

    return st.one_of(
        st.lists(st.tuples(at, st.integers(0, 255)), min_size=1, max_size=6).map(replace),
        st.tuples(at, st.sampled_from(EDGES)).map(
            lambda pair: whole[: pair[0]] + struct.pack(">I", pair[1]) + whole[pair[0] + 4 :]
        ),
        at.map(lambda where: whole[:where]),
        st.tuples(at, st.binary(max_size=20)).map(
            lambda pair: whole[: pair[0]] + pair[1] + whole[pair[0] :]
        ),
        st.tuples(at, st.integers(1, 200)).map(
            lambda pair: whole[: pair[0]] + whole[pair[0] + pair[1] :]
        ),
    )
