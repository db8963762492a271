"""Parses command lines into dataclasses, with cyclopts.

Each field of the dataclass is an option. Its annotation says which values it takes, and the
docstring that follows it is the help text. A field that is not keyword-only can also be given
without the name of the option. See `options.Config`.

Scripts parse their options before they import JAX, so that --help and errors come at once.
"""

from __future__ import annotations

import interrupts  # noqa: F401

# isort: split
import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import cyclopts
from cyclopts import App, CycloptsError, Group, Parameter, Token
from errors import OptionError, fail, listed

T = TypeVar("T")
NOTHING: Mapping[str, Any] = types.MappingProxyType({})


def parse(
    cls: type[T],
    description: str | None,
    arguments: Sequence[str] | None = None,
    *,
    headings: Mapping[str, str] = NOTHING,
    presets: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda given: NOTHING,
    check: Callable[[T], None] = lambda config: None,
) -> T:
    """Parses a command line into a dataclass.

    Exits with code 0 after --help, and with code 2 after an error, which is one line on stderr.

    Args:
        cls: The dataclass.
        description: The text at the head of --help, in Markdown.
        arguments: The command line. Defaults to that of the process.
        headings: Headings of --help by the name of the first option below each.
        presets: A function from the given options to other defaults than those of the class.
        check: A function that raises OptionError if the options do not go together.
    """
    words = sys.argv[1:] if arguments is None else arguments
    try:
        # To find what is given, --help is left out, and no option is required.
        app = build_app(cls, defaults=dict.fromkeys(typing.get_type_hints(cls)))
        _, given, _ = app.parse_args([word for word in words if word not in app.help_flags])
        app = build_app(cls, headings, presets(given.arguments), description)
        if parsed := app(words):
            config = cls(**vars(parsed))
            check(config)
            return config
    except cyclopts.MissingArgumentError as error:
        choices = error.argument and error.argument.get_choices()
        sys.exit(fail(f"{error} Choose from: {listed(choices)}." if choices else error))
    except (CycloptsError, OptionError) as error:
        sys.exit(fail(error))
    sys.exit(0)  # after --help


def build_app(
    cls: type,
    headings: Mapping[str, str] = NOTHING,
    defaults: Mapping[str, Any] = NOTHING,
    description: str | None = None,
) -> App:
    """Returns a parser, which returns an instance of a subclass of `cls`, or None after --help.

    The arguments are those of `parse`. `defaults` replace the defaults of the class.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    options = group = Group.create_ordered("options")
    fields = []
    for field in dataclasses.fields(cls):
        if field.name in headings:
            group = Group.create_ordered(headings[field.name])
        hint, default = hints[field.name], defaults.get(field.name, field.default)
        parameter = Parameter(
            group=group,
            show_default=default is not False and default not in (None, "", ()),
            converter=lambda _, tokens, hint=hint: cyclopts.convert(hint, tokens, _exactly),
        )
        new = dataclasses.field(default=default, kw_only=field.kw_only)
        fields.append((field.name, Annotated[hint, parameter], new))
    return App(
        # A subclass, so that cyclopts finds the docstrings of the fields.
        default_command=dataclasses.make_dataclass(cls.__name__, fields, bases=(cls,), frozen=True),
        default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
        group_commands=options,  # for --help
        help="",
        help_prologue=description,
        version_flags=[],
        exit_on_error=False,
        print_error=False,
        verbose=False,
        result_action="return_value",
    )


def convert(name: str, hint: Any, text: str) -> Any:
    """Returns the value that a text stands for, as on the command line.

    Raises OptionError, with the name of the option, if the annotated type does not take the text.
    """
    hint = Literal[True, False] if hint is bool else hint  # so that the error lists the values
    try:
        return cyclopts.convert(hint, [Token(keyword=name, value=text)], _exactly)
    except CycloptsError as error:
        error.verbose = False
        raise OptionError(str(error)) from None


def _exactly(kind: Any, text: str) -> Any:
    """Converts a text as cyclopts does, but does not round 2.5 to an integer."""
    try:
        return int(text) if kind is int else cyclopts.convert(kind, [text])
    except cyclopts.CoercionError:
        raise ValueError(text) from None  # to which cyclopts adds the name of the option


def flag(name: str) -> str:
    """Returns the name of an option on the command line."""
    return f"--{name.replace('_', '-')}"
