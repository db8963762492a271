"""Malformed JSON files of runs and studies, and malformed command lines."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fault_checks.fuzzing import Target, said

# ---- JSON files

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.sampled_from([0, -1, 10**9, 10**400]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["rnn", "lstm", "lstm-layer-norm", "columns", "../../etc", "/dev/zero", ""]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


class Change(typing.NamedTuple):
    """A change of a JSON file.

    Attributes:
        file: A key of `USES`.
        way: How it is changed.
        line: The index of the line, of a file of records.
        at: The index of the entry, among all at any depth.
        value: The other value.
        seal: Whether the checksum stays, is removed, or is that of the changed entries.
    """

    file: str
    way: str
    line: int
    at: int
    value: Any
    seal: str


# Changes of an object, and of the bytes of its text.
OF_ENTRIES = ("value", "value", "value", "delete", "add", "whole")
OF_BYTES = {
    "duplicate": lambda text: text.replace(b"{", b'{"step": -1, ', 1),
    "BOM": lambda text: b"\xef\xbb\xbf" + text,
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "not UTF-8": lambda text: text.replace(b'"', b'"\xff', 1),
    "NUL": lambda text: text.replace(b'"', b'"\x00', 1),
    "nested": lambda text: b"[" * 100_000,
    "cut": lambda text: text[: len(text) // 2],
    "twice": lambda text: text + text,
    "zeros": lambda text: bytes(len(text)),
    "a long number": lambda text: text.replace(b"1", b"1" * 5000, 1),
}


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields each container and key at any depth, without the checksum."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in items:
        if key != "checksum":
            yield value, key
        if isinstance(each, dict | list):
            yield from places(each)


def changed(text: bytes, change: Change) -> bytes:
    """Returns the changed text of an object."""
    from jaxrnn.training import files

    if change.way in OF_BYTES:
        return OF_BYTES[change.way](text)
    value = json.loads(text)
    if change.way == "whole":
        return json.dumps(change.value).encode()
    found = list(places(value))
    where, key = found[change.at % len(found)]
    if change.way == "value":
        where[key] = copy.deepcopy(change.value)
    elif change.way == "delete":
        del where[key]
    else:
        value["new"] = change.value
    if change.seal != "keep":
        value.pop("checksum", None)
    return json.dumps(files.sealed(value) if change.seal == "new" else value).encode()


@dataclasses.dataclass
class Scripts:
    """The scripts that read the JSON files of a run and of a study.

    Attributes:
        run: A finished run.
        run_words: The command line of mnist.py for it, without --out.
        study: The folder of a finished study.
        study_words: The command line of ablate.py for it, without --out.
        image: A picture of a digit.
        expected: What each prints of undamaged files.
    """

    run: Path
    run_words: list[str]
    study: Path
    study_words: list[str]
    image: Path
    expected: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def targets(self) -> dict[str, Target]:
        """Returns the targets."""
        ways = st.sampled_from([*OF_ENTRIES, *OF_BYTES])
        found = {}
        for name, files in {"run JSON": USES[:3], "study JSON": USES[3:]}.items():
            parts = st.sampled_from(files), ways, st.integers(0, 9), st.integers(0, 999), VALUES
            seals = st.sampled_from(["keep", "drop", "new"])
            found[name] = Target(st.builds(Change, *parts, seals), self.attempt)
        return found

    def attempt(self, change: Change, folder: Path) -> str:
        """Changes a file and uses the run or the study: an error in a line, or the right answer."""
        what = change.file
        if what not in self.expected:
            place = self.copied(what, folder / "whole")
            code, out, err, problem = said(self.use(what, place))
            if problem or code:
                return f"undamaged files: {problem or err}"
            self.expected[what] = numbers(what, out, place)
        same = False

        def edit(text: bytes) -> bytes:
            nonlocal same
            if not what.endswith(".jsonl"):
                found = changed(text, change)
            else:
                lines = text.splitlines(keepends=True)
                at = change.line % len(lines)
                lines[at] = changed(lines[at].rstrip(b"\n"), change) + b"\n"
                found = b"".join(lines)
            same = loaded(found) == loaded(text)
            return found

        place = self.copied(what, folder / "changed")
        code, out, err, problem = self.edited(what, place, edit)
        if problem or code or (change.seal != "keep" and change.way in OF_ENTRIES):
            return problem  # another file with a right checksum, or none, may give other numbers
        if numbers(what, out, place) != self.expected[what]:
            lost = "lost" in out or "damaged" in out
            return "" if what == "run metrics.jsonl" and lost else "other numbers"
        told = same or "damaged" in out + err or "has lost" in out
        return "" if told or change.way == "whole" else "no word about a damaged file"

    def edited(self, what: str, place: Path, edit: Callable[[bytes], bytes]) -> Any:
        """Edits a file of a copy, and returns what `said` returns of the script that reads it."""
        path = place / what.split(" ")[-1]
        path.write_bytes(edit(path.read_bytes()))
        return said(self.use(what, place))

    def copied(self, what: str, place: Path) -> Path:
        """Copies the run or the study; returns the folder of its JSON files."""
        if what.startswith("run"):
            shutil.copytree(self.run, place)
            if what == "run metrics.jsonl":
                (place / "result.json").unlink()  # which is written from the metrics
            return place
        shutil.copytree(self.study, place)
        return place / "sizes"

    def use(self, what: str, place: Path) -> Callable[[], int]:
        """Returns the main function of the script that reads the file."""
        import ablate
        import mnist
        import predict
        import train
        from command_line import parse
        from terminal import run_script

        from jaxrnn.training import report

        # Figures take most of the time of a small run.
        train.draw = lambda *_: None  # type: ignore[assignment]
        report._save = lambda *_: None  # type: ignore[assignment]
        if what == "run config.json":
            return lambda: predict.main([str(self.image), "--run", str(place)])
        if what.startswith("run"):
            words = [*self.run_words, "--out", str(place)]
            return lambda: run_script(lambda: mnist.main(mnist.command_line(words)))
        words = [*self.study_words, "--out", str(place.parent)]
        config = parse(ablate.Config, "", words, check=ablate.Config.check)
        return lambda: run_script(lambda: ablate.main(config))


# The files, and with them what reads them.
USES = (
    "run config.json",
    "run metrics.jsonl",
    "run result.json",
    "study config.json",
    "study results.jsonl",
)


def loaded(text: bytes) -> list[Any]:
    """Returns the value of a JSON text, or else those of its lines, or the lines themselves."""
    try:
        return [json.loads(text)]
    except (ValueError, RecursionError):
        lines = text.splitlines()
        return [each for line in lines for each in loaded(line)] if len(lines) > 1 else lines


def numbers(what: str, out: str, place: Path) -> list[str]:
    """Returns the lines with results that a script prints, or the table of a study."""
    if what.startswith("study"):
        lines = (place / "table.md").read_text().splitlines()
        # Without the last column, the seconds of a run.
        return [line.rsplit("|", 2)[0] for line in lines if line.startswith("|")]
    if what == "run config.json":
        return [line.partition(": ")[2] for line in out.splitlines()]
    return [line for line in out.splitlines() if "accuracy at" in line or "best of" in line]


# ---- command lines

WORDS = [
    *("", " ", "-", "--", "=", "--=", "-1", "0", "1", "3", "2.5", "nan", "-nan", "inf", "-inf"),
    *("1e999", "1e-999", "9" * 30, "9" * 5000, "-" + "9" * 30, "0x10", "1_000", "\u0661\u0662"),
    *("None", "True", "false", "[1, 2]", "{}", "x=1", "=1", "x=", "hidden_size=1,2", "cell=no"),
    *("steps=nan", "\u00fcn\u00efc\u00f6d\u00e9", "\u202e", "a\x00b", "a\nb", "\udce9", "\x1b[31m"),
    *(
        "../..",
        "/",
        "/dev/null",
        "~",
        "no.py:cell",
        "no.py",
        ":",
        "lstm",
        "digits",
        "rnn",
        "adding",
    ),
    *("localhost:1", "localhost:99999", "--help", "-h", "size", "html", "in-step"),
]


def scripts() -> dict[str, Any]:
    """Returns the function that parses the command line of each script, and its options."""
    import ablate
    import accelerator
    import benchmark
    import costs
    import draw
    import export
    import forms
    import mnist
    import predict
    import results
    from command_line import parse

    found: dict[str, Any] = {"mnist": (mnist.command_line, mnist.Config)}
    for module in (ablate, accelerator, benchmark, costs, draw, export, forms, predict, results):
        cls = module.Config
        check = getattr(cls, "check", lambda config: None)

        def parsed(words: list[str], cls: Any = cls, check: Any = check) -> Any:
            return parse(cls, "", words, check=check)

        found[module.__name__] = parsed, cls
    return found


@st.composite
def _command_lines(draw: Any) -> tuple[str, list[str]]:
    """The name of a script and its arguments."""
    name, (_, cls) = draw(st.sampled_from(list(scripts().items())))
    flags = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(cls)]
    flags += ["--no-such", *[flag.replace("--", "--no-") for flag in flags[:3]]]
    word = st.one_of(st.sampled_from(WORDS), st.text(max_size=6))
    option = st.sampled_from(flags)
    part = st.one_of(
        st.tuples(option, word),
        st.tuples(option),
        st.tuples(word),
        st.tuples(st.builds("{}={}".format, option, word)),
    )
    return name, [each for words in draw(st.lists(part, max_size=4)) for each in words]


def try_command_line(example: tuple[str, list[str]], folder: Path) -> str:
    """Parses a command line: options of their types, --help, or an error in a line."""
    from jaxrnn.training.files import conforms

    name, words = example
    parse, cls = scripts()[name]
    found = []
    code, out, err, problem = said(lambda: found.append(parse(words)))
    if problem:
        return problem
    if code:
        return "" if err.count("\n") == 1 and not out else f"prints {err + out!r:.200}"
    if not found:
        return "" if code == 0 and out else "neither options nor an error nor --help"
    hints = typing.get_type_hints(cls)
    for key, value in vars(found[0]).items():
        if wrong := conforms(value, hints[key]):
            return f"{key}: {wrong}"
        if isinstance(value, float) and value != value:
            return f"{key} is NaN"
    return ""


TARGETS = {"command lines": Target(_command_lines(), try_command_line)}
