"""Parses command lines into dataclasses, with argparse.

Each field of the dataclass is an option. Its annotation says which values it takes, and the
docstring that follows it is the help text. See `options.Config`.

Scripts parse their options before they import JAX, so that --help and errors come at once. This
module, `errors` and `options` therefore import the standard library alone.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import inspect
import itertools
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar

from errors import OptionError, did_you_mean, fail, listed, unknown

T = TypeVar("T")

METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
MOST_CHOICES = 10  # Longer lists of choices are in the help text, not in the name of the value.
EXPECTED = {int: "an integer", float: "a number", str: "text", Path: "a path"}


@dataclass(frozen=True)
class Option:
    """How an option is given, in the `Annotated` type of its field.

    Attributes:
        metavar: The name of the value in --help. Defaults to one for the field's type.
        positional: Whether the value is given without the name of the option.
        repeated: Whether the items of a tuple are given one at a time, as `--set a=1 --set b=2`.
        hidden: Whether --help leaves the option out.
    """

    metavar: str | None = None
    positional: bool = False
    repeated: bool = False
    hidden: bool = False


def parse(
    cls: type[T],
    description: str | None,
    arguments: Sequence[str] | None = None,
    *,
    headings: Mapping[str, str] = types.MappingProxyType({}),
    presets: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda given: {},
    check: Callable[[T], None] = lambda config: None,
) -> T:
    """Parses a command line into a dataclass.

    Exits with code 0 after --help, and with code 2 after an error, which is one line on stderr.

    Args:
        cls: The dataclass.
        description: The text at the head of --help.
        arguments: The command line. Defaults to that of the process.
        headings: Headings of --help by the name of the first option below each.
        presets: A function from the given options to other defaults than those of the class.
        check: A function that raises OptionError if the options do not go together.
    """
    try:
        given, help_wanted = read(cls, sys.argv[1:] if arguments is None else arguments)
        defaults = presets(given)
        if not help_wanted:
            config = cls(**{**defaults, **given})
            check(config)
            return config
    except OptionError as error:
        sys.exit(fail(error))
    build_parser(cls, description, headings, defaults).print_help()
    sys.exit(0)


def read(cls: type, arguments: Sequence[str]) -> tuple[dict[str, Any], bool]:
    """Returns the values of the given options, and whether --help is given.

    Raises:
        OptionError: If an option is unknown or missing, or does not take the value.
    """
    fields = fields_of(cls)
    parser = build_parser(cls)
    parsed, rest = parser.parse_known_intermixed_args([_with_dashes(word) for word in arguments])
    if rest:
        name = rest[0].partition("=")[0]
        if not name.startswith("-"):
            raise OptionError(f"unexpected argument {name!r}; see --help")
        names = [flag(field.name) for field in fields if not field.option.hidden]
        near = did_you_mean(name, [*names, "--help"])
        raise OptionError(f"there is no option {name}{near or '; see --help'}")
    texts, given = vars(parsed), {}
    for field in fields:
        name = field.name.upper() if field.option.positional else flag(field.name)
        if field.name in texts:
            given[field.name] = convert(name, field.hint, texts[field.name])
        elif field.default is dataclasses.MISSING and "help" not in texts:
            raise OptionError(f"{name} is missing; it takes {expected(field.hint)}")
    return given, "help" in texts


def build_parser(
    cls: type,
    description: str | None = None,
    headings: Mapping[str, str] = types.MappingProxyType({}),
    defaults: Mapping[str, Any] = types.MappingProxyType({}),
) -> argparse.ArgumentParser:
    """Returns a parser of the options' texts, which `convert` turns into values.

    Args:
        cls: The dataclass.
        description: The text at the head of --help.
        headings: Headings of --help by the name of the first option below each.
        defaults: Defaults for --help to show in place of those of the class.
    """
    fields = fields_of(cls)
    positionals = [
        field.name.upper() if field.default is dataclasses.MISSING else f"[{field.name.upper()}]"
        for field in fields
        if field.option.positional
    ]
    parser = Parser(
        usage=" ".join(["%(prog)s", *positionals, "[OPTIONS]"]),
        description=description,
        formatter_class=Formatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    group = parser.add_argument_group("options")
    group.add_argument("-h", "--help", action="store_true", help="Show this text and exit.")
    for field in fields:
        if field.name in headings:
            group = parser.add_argument_group(headings[field.name])
        _add(group, field, defaults.get(field.name, field.default))
    return parser


class Field(NamedTuple):
    """A field of a dataclass of options.

    Attributes:
        name: The name.
        hint: The type, without `Option`.
        default: The default value, or `dataclasses.MISSING`.
        option: How it is given.
        help: The docstring.
    """

    name: str
    hint: Any
    default: Any
    option: Option
    help: str


def fields_of(cls: type) -> list[Field]:
    """Returns the fields of a dataclass, with the docstrings that follow them in the source."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    docstrings = {
        field.target.id: " ".join(following.value.value.split())
        for field, following in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
        and isinstance(following.value.value, str)
    }
    hints = typing.get_type_hints(cls)
    options = typing.get_type_hints(cls, include_extras=True)
    return [
        Field(
            field.name,
            hints[field.name],
            field.default,
            next(iter(getattr(options[field.name], "__metadata__", [])), Option()),
            docstrings.get(field.name, ""),
        )
        for field in dataclasses.fields(cls)
    ]


class Parser(argparse.ArgumentParser):
    """A parser that raises its errors."""

    def error(self, message: str) -> NoReturn:
        """Raises OptionError."""
        raise OptionError(message.removeprefix("argument "))


class Formatter(argparse.HelpFormatter):
    """Wraps text at the width of the terminal; keeps hyphenated names and indented lines whole."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        wrapped = [
            each if each.startswith(" ") else textwrap.fill(each, width, break_on_hyphens=False)
            for each in paragraphs
        ]
        return textwrap.indent("\n\n".join(wrapped), indent)


def flag(name: str) -> str:
    """Returns the name of an option on the command line."""
    return f"--{name.replace('_', '-')}"


def convert(name: str, hint: Any, text: Any) -> Any:
    """Returns the value that a text stands for.

    Args:
        name: The name of the option, for the error.
        hint: The annotation: int, float, str, bool, Path, None, a Literal of texts, a union of
            these, or a tuple of any number of one of these.
        text: The text, or a list of texts for a tuple, or a bool.

    Raises:
        OptionError: If the option does not take the value.
    """
    if typing.get_origin(hint) is tuple:
        item, _ = typing.get_args(hint)
        return tuple(convert(name, item, each) for each in text)
    if isinstance(text, bool):
        return text
    constants = {"None": None, "True": True, "False": False}
    for kind in _alternatives(hint):
        if text in _choices(kind):
            return constants.get(text, text)
        if kind in METAVARS:
            with contextlib.suppress(ValueError):
                return kind(text)
    if any(kind in METAVARS for kind in _alternatives(hint)):
        raise OptionError(f"{name} takes {expected(hint)}, got {text!r}")
    choices = [choice for kind in _alternatives(hint) for choice in _choices(kind)]
    raise unknown(f"{name} does not take {text!r}", text, choices)


def expected(hint: Any) -> str:
    """Describes the values of an annotated type, as in "an integer or None"."""
    if typing.get_origin(hint) is tuple:
        return expected(typing.get_args(hint)[0])
    kinds = sorted(_alternatives(hint), key=lambda kind: kind is types.NoneType)
    *most, last = [
        word
        for kind in kinds
        for word in ([EXPECTED[kind]] if kind in EXPECTED else _choices(kind))
    ]
    return f"{', '.join(most)} or {last}" if most else last


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type; those that take any text come last."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if is_union else (hint,)
    return tuple(sorted(kinds, key=lambda kind: kind in METAVARS))


def _choices(kind: Any) -> tuple[str, ...]:
    """The texts that a type takes if they can be listed."""
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    return {bool: ("True", "False"), types.NoneType: ("None",)}.get(kind, ())


def _add(group: Any, field: Field, default: Any) -> None:
    """Adds an option to a group of a parser."""
    name = field.name if field.option.positional else flag(field.name)
    action = group.add_argument(name, **_syntax(field))
    # Set afterwards, since some versions of argparse add the default of a flag themselves.
    action.help = argparse.SUPPRESS if field.option.hidden else _help(field, default)


def _syntax(field: Field) -> dict[str, Any]:
    """The arguments of `add_argument` for the values of an option."""
    if field.hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    item = _item(field.hint)
    metavar = "NAME" if _is_long(item) else METAVARS.get(item) or f"{{{','.join(_choices(item))}}}"
    if field.option.positional:
        metavar = field.name.upper()
    syntax: dict[str, Any] = {"metavar": field.option.metavar or metavar}
    if field.option.repeated:
        return syntax | {"action": "append"}
    if typing.get_origin(field.hint) is tuple:
        return syntax | {"nargs": "*"}
    return syntax | ({"nargs": "?"} if field.option.positional else {})


def _help(field: Field, default: Any) -> str:
    """The help text of an option, with a long list of choices and the default."""
    item, text = _item(field.hint), field.help
    if _is_long(item):
        text += f" Choose from {listed(_choices(item))}."
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    if default is not False and default not in (None, "", dataclasses.MISSING):
        text += f" (default: {default})"
    return text.replace("%", "%%")


def _item(hint: Any) -> Any:
    """The first type of a union, or of the items of a tuple, that is not None."""
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    return next(kind for kind in _alternatives(hint) if kind is not types.NoneType)


def _is_long(kind: Any) -> bool:
    return len(_choices(kind)) > MOST_CHOICES


def _with_dashes(word: str) -> str:
    """--hidden_size as --hidden-size; anything else as it is."""
    name, equals, value = word.partition("=")
    return flag(name.removeprefix("--")) + equals + value if name.startswith("--") else word
