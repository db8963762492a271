"""Every script parses its options before JAX is imported, and names what is wrong with them."""

import dataclasses
import os
import signal
import subprocess
import sys
import typing
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

import ablate
import accelerator
import baselines
import benchmark
import cells
import command_line
import costs
import draw
import experiment
import export
import forms
import interrupts
import mnist
import options
import predict
import pytest
import results
import studies
import study_options
from command_line import parse
from cyclopts import Parameter
from errors import OptionError

from jaxrnn.training import data

FOLDER = Path(mnist.__file__).parent
SCRIPTS = {
    "ablate": ablate.Config,
    "accelerator": accelerator.Config,
    "benchmark": benchmark.Config,
    "costs": costs.Config,
    "draw": draw.Config,
    "export": export.Config,
    "forms": forms.Config,
    "mnist": options.Config,
    "predict": predict.Config,
    "results": results.Config,
}
HEAVY = {"jax", "flax", "optax", "orbax", "tensorflow_datasets", "matplotlib", "sklearn", "scipy"}
# Runs every script with --help, and prints the modules that are imported.
HELP = """
import contextlib, os, runpy, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    sys.argv = [name, "--help"]
    with contextlib.suppress(SystemExit):
        runpy.run_path(os.path.join(sys.path[0], f"{name}.py"), run_name="__main__")
        raise AssertionError(f"{name} ran")
print(*{module.partition(".")[0] for module in sys.modules})
"""


def test_every_script_is_listed():
    scripts = {
        path.stem
        for path in FOLDER.glob("*.py")
        if 'if __name__ == "__main__":' in path.read_text() and "command_line" in path.read_text()
    }
    assert scripts == SCRIPTS.keys()


def test_help_imports_neither_jax_nor_another_heavy_library():
    command = [sys.executable, "-c", HELP, str(FOLDER), *SCRIPTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *shown, modules = done.stdout.splitlines()
    assert not HEAVY & set(modules.split())
    assert [line.split()[1] for line in shown if line.startswith("Usage: ")] == [
        f"{name}.py" for name in SCRIPTS
    ]


def exits(capsys, cls, *arguments, **settings):
    """The exit code of `parse`, and what it prints to stdout and stderr."""
    with pytest.raises(SystemExit) as exit:
        parse(cls, "A script.", arguments, **settings)
    return exit.value.code, *capsys.readouterr()


@pytest.mark.parametrize("columns", [60, 100])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_describes_every_option_within_the_width(script, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    cls = SCRIPTS[script]
    code, shown, _ = exits(capsys, cls, "--help")
    assert code == 0
    assert all(len(line) <= columns for line in shown.splitlines())
    arguments = command_line.build_app(cls).assemble_argument_collection(parse_docstring=True)
    assert len(arguments) == len(fields(cls))
    for argument in arguments:
        assert (argument.parameter.help or "").endswith("."), argument.name
        assert (argument.names[0] in shown) == argument.show


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_misspelt_option_is_one_line(script, capsys):
    code, shown, error = exits(capsys, SCRIPTS[script], "--otu", "3")
    assert (code, shown) == (2, "")
    assert error.startswith("error: Unknown option: --otu.")
    assert ("Did you mean --out?" in error) == ("out" in fields(SCRIPTS[script]))
    assert error.count("\n") == 1


def fields(cls):
    return {field.name for field in dataclasses.fields(cls)}


@dataclass(frozen=True)
class Example:
    """Every type of option."""

    form: Literal["one", "many"]
    """Form."""
    _: KW_ONLY
    size: int = 3
    """Size."""
    rate: float | None = None
    """Rate."""
    order: Literal["rows", "columns"] = "rows"
    """Order, in 100 % of the
    cases."""
    tied: Literal[True, False] | None = None
    """Tied."""
    resume: bool = True
    """Resume."""
    out: Path = Path("runs")
    """Folder."""
    names: tuple[str, ...] = ()
    """Names."""
    pairs: Annotated[tuple[str, ...], Parameter(metavar="KEY=VALUE", consume_multiple=False)] = ()
    """Pairs."""
    long_name: int | None = None
    """Has two words."""


def test_values_of_every_type():
    assert parse(Example, "", ["one"]) == Example("one")
    words = "--size 4 many --rate -0.5 --order=columns --tied False --no-resume --out a/b "
    words += "--names a b --pairs x=1 --pairs y=-2 --long_name=5"
    assert parse(Example, "", words.split()) == Example(
        "many",
        size=4,
        rate=-0.5,
        order="columns",
        tied=False,
        resume=False,
        out=Path("a/b"),
        names=("a", "b"),
        pairs=("x=1", "y=-2"),
        long_name=5,
    )
    assert parse(Example, "", ["one", "--rate", "None", "--names"]) == Example("one")


def test_defaults_may_depend_on_what_is_given(capsys):
    def presets(given):
        return {"size": 7, "rate": 0.5} if given.get("form") == "many" else {}

    assert parse(Example, "", ["one"], presets=presets) == Example("one")
    given = parse(Example, "", ["many", "--rate", "0.1"], presets=presets)
    assert given == Example("many", size=7, rate=0.1)
    _, shown, _ = exits(capsys, Example, "many", "--help", presets=presets)
    assert "Size. [default: 7]" in shown


def test_help_has_headings_and_defaults(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    _, shown, _ = exits(capsys, Example, "--help", headings={"tied": "noise"})
    assert shown.startswith("A script.")
    assert "FORM\n\n╭─ options ─" in shown
    before, after = shown.split("╭─ noise ─")
    assert "Order, in 100 % of the cases. [choices: rows, columns]" in before
    assert "[default: rows]" in before
    assert "--tied CHOICE         Tied. [choices: True, False]" in after
    assert "--resume --no-resume" in after
    assert "--pairs KEY=VALUE" in after


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "Parameter --form requires an argument. Choose from: one, many."),
        (
            "noe",
            'Invalid value "noe" for FORM. Choose from: "one", "many". Did you mean "one"?',
        ),
        ("one two", "Unused Tokens: ['two']."),
        ("one --size", "Parameter --size requires an argument."),
        ("one --size big", 'Invalid value for --size: unable to convert "big" into int.'),
        ("one --size 2.5", 'Invalid value for --size: unable to convert "2.5" into int.'),
        ("one --size None", 'Invalid value for --size: unable to convert "None" into int.'),
        ("one --rate fast", 'Invalid value for --rate: unable to convert "fast" into float.'),
        (
            "one --order rwos",
            'Invalid value "rwos" for --order. Choose from: "rows", "columns". Did you mean "ro',
        ),
        ("one --tied maybe", 'Invalid value "maybe" for --tied. Choose from: True, False.'),
        (
            "one --resume=maybe",
            'Invalid value for --resume: unable to convert "maybe" into bool.',
        ),
        ("one --siez 3", "Unknown option: --siez. Did you mean --size?"),
        ("one --long", "Unknown option: --long. Did you mean --long-name?"),
        ("--unlike 3", "Unknown option: --unlike."),
        ("one --size 0", "--size must be at least 1"),
    ],
)
def test_an_error_names_what_is_accepted(words, message, capsys):
    def check(config):
        if config.size < 1:
            raise OptionError("--size must be at least 1")

    code, shown, error = exits(capsys, Example, *words.split(), check=check)
    assert (code, shown) == (2, "")
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("mnist", "--cell LSTM", "--cell does not take 'LSTM'; did you mean lstm?"),
        ("mnist", f"--out {__file__}", f"--out {__file__}: {__file__} is a file, not a folder"),
        ("mnist", f"--out {__file__}/a", f"--out {__file__}/a: {__file__} is a file, not a fold"),
        ("ablate", f"size --out {__file__}", f"--out {__file__}: {__file__} is a file, not a f"),
        ("forms", f"in-step --out {__file__}", f"--out {__file__}/in-step: {__file__} is a file"),
        ("accelerator", f"--out {__file__}", f"--out {__file__}: {__file__} is a file, not a f"),
        ("export", f"--out {__file__}/a.onnx", f"--out {__file__}/a.onnx: {__file__} is a file, n"),
        ("export", "--out no/a.onnx", f"--out no/a.onnx: {Path.cwd()}/no does not exist"),
        ("export", f"--out {FOLDER} --format html", f"--out {FOLDER} is a folder, not a file"),
        ("benchmark", f"--out {FOLDER}", f"--out {FOLDER} is a folder, not a file"),
        ("mnist", "--cell lsmt", "--cell does not take 'lsmt'; did you mean lstm"),
        ("mnist", "--dataset mnits", 'Invalid value "mnits" for --dataset. Choose from: '),
        ("mnist", "--recipe fsat", 'Invalid value "fsat" for --recipe. Choose from: '),
        ("mnist", "--hiden-size 3", "Unknown option: --hiden-size. Did you mean --hidden-size?"),
        ("ablate", "--vary hidden_size", "--vary must be option=value,value, got 'hidden_size'"),
        (
            "ablate",
            "sise",
            "there is no study 'sise', and no --vary to define it; did you mean size",
        ),
        ("forms", "one-to-noe", 'Invalid value "one-to-noe" for FORM. Choose from: '),
        ("forms", "in-step --steps 0", "--steps must be at least 1"),
        (
            "benchmark",
            "--libraries jaxrn",
            'Invalid value "jaxrn" for --libraries. Choose from: "jaxrnn"',
        ),
        ("benchmark", "--rounds 0", "--rounds must be at least 1"),
        ("accelerator", "--parts sped", 'Invalid value "sped" for --parts. Choose from: '),
        ("accelerator", "--seconds -1", "--seconds must not be negative"),
        ("predict", "", "no image is given"),
    ],
)
def test_every_script_has_errors_of_this_form(script, words, message, capsys):
    cls = SCRIPTS[script]
    code, shown, error = exits(capsys, cls, *words.split(), check=cls.check)
    assert (code, shown) == (2, "")
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("mnist", "--out {}/a"),
        ("ablate", "size --out {}"),
        ("forms", "in-step --out {}/.."),  # its own folder there
        ("accelerator", "--out {}"),
        ("export", "--out {}/a.onnx"),
        ("benchmark", "--out {}/a.json"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named_at_once(
    script, words, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "in-step"
    folder.mkdir()
    access = os.access  # which allows everything to root
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path).resolve() != folder and access(path, mode)
    )
    cls = SCRIPTS[script]
    code, _, error = exits(capsys, cls, *words.format(folder).split(), check=cls.check)
    assert code == 2
    assert error.endswith("in-step cannot be written\n")


def test_the_names_of_options_are_those_of_the_tables():
    hints = typing.get_type_hints(options.Config)
    assert tuple(cells.CELLS) == options.CELLS
    assert tuple(baselines.BASELINES) == options.BASELINES
    assert typing.get_args(options.Initializer) == tuple(cells.INITIALIZERS)
    assert typing.get_args(hints["optimizer"]) == tuple(experiment.OPTIMIZERS)
    assert typing.get_args(hints["dataset"]) == ("auto", *data.NAMES)
    assert typing.get_args(hints["order"]) == data.ORDERS
    assert tuple(studies.STUDIES) == study_options.STUDIES
    assert options.HEADINGS.keys() <= hints.keys()
    assert study_options.HEADINGS.keys() <= fields(ablate.Config)


SIGNAL = """
import os, signal, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
number = int(sys.argv[2])
sys.argv[0] = sys.argv[1]
import interrupts
class Swallows:
    def __del__(self):  # where an exception would be lost
        os.kill(os.getpid(), number)
Swallows()
print("went on")
"""


@pytest.mark.parametrize(
    ("script", "advice"),
    [
        ("mnist", "; the same command resumes from the last checkpoint"),
        ("ablate", "; the same command trains the runs that are missing"),
        ("predict", ""),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_script_with_one_line(script, advice, number):
    words = [sys.executable, "-S", "-c", SIGNAL, str(FOLDER / f"{script}.py"), str(int(number))]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr == f"interrupted{advice}\n"


AT_THE_END = """
import os, signal, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
number = int(sys.argv[2])
sys.argv[0] = sys.argv[1]
import interrupts
class Swallows:
    def __del__(self):
        os.kill(os.getpid(), number)
sys.modules["last"] = Swallows()  # which lives until Python ends
sys.exit(3)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_python_ends_leaves_the_exit_code(number):
    words = [sys.executable, "-S", "-c", AT_THE_END, str(FOLDER / "mnist.py"), str(int(number))]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_the_signals_of_other_programs_stay_as_they_are():
    assert signal.getsignal(signal.SIGINT) != interrupts.end
    for name in SCRIPTS:
        imports = [
            line.split()[1]
            for line in (FOLDER / f"{name}.py").read_text().splitlines()
            if line.startswith(("import ", "from ")) and line.split()[1] != "__future__"
        ]
        own = [each for each in imports if each.partition(".")[0] not in sys.stdlib_module_names]
        assert own[0] in ("interrupts", "command_line"), name  # which imports it first
