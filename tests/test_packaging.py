"""The wheel and the sdist that `python -m build` makes."""

import email
import tarfile
import zipfile
from pathlib import Path

import pytest

import jaxrnn

ROOT = Path(__file__).parents[1]
VERSION = jaxrnn.__version__
INFO = f"jaxrnn-{VERSION}.dist-info"


def files(*folders):
    return {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist."""
    backend = pytest.importorskip("hatchling.build")
    folder = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        wheel, sdist = (make(str(folder)) for make in (backend.build_wheel, backend.build_sdist))
    return folder / wheel, folder / sdist


def test_the_wheel_holds_the_library_and_its_licence(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
        metadata = email.message_from_bytes(wheel.read(f"{INFO}/METADATA"))
    library = {name for name in names if not name.startswith(f"{INFO}/")}
    assert library == files("jaxrnn")
    assert "jaxrnn/py.typed" in library
    assert f"{INFO}/licenses/LICENSE" in names
    assert metadata["Version"] == VERSION
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"onnx", "tensorboard"} <= set(metadata.get_all("Provides-Extra"))


def test_the_sdist_holds_what_its_tests_need(built):
    with tarfile.open(built[1]) as sdist:
        names = {name.removeprefix(f"jaxrnn-{VERSION}/") for name in sdist.getnames()}
    code = {name for name in files("jaxrnn", "tests", "experiments") if name.endswith(".py")}
    assert code <= names
    assert {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "docs/index.md"} <= names
    assert {"experiments/page/page.html", "jaxrnn/py.typed", "mkdocs.yml"} <= names
    ours = {"jaxrnn", "experiments", "tests", "docs"}
    unknown = {name for name in names if "/" in name and name.split("/")[0] not in ours}
    assert unknown == set()


def test_one_version_everywhere():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    assert changelog.count(f"\n## [{VERSION}] - ") == 1
    assert f"\nversion: {VERSION}\n" in citation
    [date] = [line.split()[-1] for line in changelog.splitlines() if f"[{VERSION}] - " in line]
    assert f'\ndate-released: "{date}"\n' in citation
