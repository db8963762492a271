"""The code of README.md and docs/ runs, and the reference has every public name."""

import collections
import functools
import importlib
import re
import runpy
import shlex
from pathlib import Path

import jax
import pytest
from command_line import parse
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
WITH_CODE = [page for page in PAGES if "```python\n" in page.read_text()]
WITH_COMMANDS = [page for page in PAGES if "python experiments/" in page.read_text()]
CODE = Sybil([PythonCodeBlockParser()])
MODULES = [
    "jaxrnn",
    "jaxrnn.convert",
    "jaxrnn.initializers",
    "jaxrnn.linen",
    "jaxrnn.nnx",
    "jaxrnn.renet",
    "jaxrnn.residual",
    "jaxrnn.training",
    "jaxrnn.training.checkpoint",
    "jaxrnn.training.compare",
    "jaxrnn.training.data",
    "jaxrnn.training.report",
    "jaxrnn.training.run",
    "jaxrnn.training.tasks",
]


@pytest.fixture(autouse=True)
def standard_promotion():
    """Users run this code with JAX's own rules of promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_code_blocks_run(page, tmp_path, monkeypatch):
    """The blocks of a page run one after the other in one namespace."""
    monkeypatch.chdir(tmp_path)
    for example in CODE.parse(page):
        example.evaluate()


COMMAND = re.compile(r"python experiments/(\w+)\.py((?:\\\n|[^\n`;#&>])*)")
IN_THE_TEXT = re.compile(r"`[^`\n]+`")


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name)
def test_commands_are_accepted(page, tmp_path, monkeypatch):
    """The scripts parse the commands of a page's code blocks; nothing is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_cells.py").touch()
    for script, text in COMMAND.findall(IN_THE_TEXT.sub("", page.read_text())):
        text = text.replace("\\\n", " ").replace("$seed", "0")
        arguments = shlex.split(text.removesuffix('"') if text.count('"') % 2 else text)
        module = importlib.import_module(script)
        check = getattr(module.Config, "check", lambda config: None)
        assert isinstance(parse(module.Config, "", arguments, check=check), module.Config)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_code_block_is_left_out(page):
    """A block with a title shows a file; any other block of Python is run by the test above."""
    blocks = re.findall(r"^ *```+ *(.*)\n(.*)", page.read_text(), re.MULTILINE)[::2]
    for info, first_line in blocks:
        assert info in ("", "python", "sh", "text", "json", "diff") or (
            info.startswith("{.python title=") and first_line.startswith("--8<-- ")
        ), info


def test_sequences_of_different_lengths_are_classified(capsys):
    accuracy = runpy.run_path(str(DOCS / "variable_length.py"))["main"](steps=160, hidden_size=8)
    assert accuracy > 0.5  # of three classes
    assert capsys.readouterr().out.count("test accuracy") == 4


def test_a_series_is_forecast(capsys):
    relative = runpy.run_path(str(DOCS / "regression.py"))["main"](steps=160, hidden_size=8)
    assert relative < 0.7
    assert capsys.readouterr().out.count("relative test error") == 4


def locate(path):
    """The object that an identifier of the reference names; a module goes before its namesake."""
    module, _, attributes = path.partition(".")
    module, attributes = importlib.import_module(module), attributes.split(".")
    while attributes:
        try:
            module = importlib.import_module(f"{module.__name__}.{attributes[0]}")
        except ImportError:
            break
        del attributes[0]
    return functools.reduce(getattr, attributes, module)


def test_each_public_name_is_on_one_page_of_the_reference():
    documented = collections.Counter()
    for page in (DOCS / "reference").glob("*.md"):
        identifiers = re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)
        documented.update(id(locate(identifier)) for identifier in identifiers)
    for module in map(importlib.import_module, MODULES):
        counts = {each: documented[id(getattr(module, each))] for each in module.__all__}
        assert counts == dict.fromkeys(module.__all__, 1), module.__name__
