"""The modules of a user's own that a Python file imports."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import itertools
import pkgutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import jaxrnn

# Modules of Python and of this project. Installed packages are in folders of these names.
FOREIGN = tuple(
    Path(folder).resolve()
    for folder in (
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("platstdlib"),
        Path(jaxrnn.__file__).parent,
        Path(__file__).parent,
    )
)
INSTALLED = {"site-packages", "dist-packages"}


def own_modules(path: Path) -> dict[str, Path]:
    """Returns the files of the user's own modules that a file imports, by the module's name.

    The import statements of the file, and those of the modules that are found, are read and not
    executed. The result therefore does not depend on what is imported already. A module is the
    user's own if its file belongs neither to Python, nor to an installed package, nor to this
    project. The modules of an editable install are the user's own.

    Args:
        path: The file. Modules beside it are found first.
    """
    found: dict[str, Path] = {}
    importlib.invalidate_caches()
    with importing(path.parent):
        names = list(_imported(path))
        while names:
            for spec in _specs(names.pop()):
                if spec.name in found or not _is_own(spec):
                    continue
                assert spec.origin is not None
                found[spec.name] = Path(spec.origin)
                is_package = spec.submodule_search_locations is not None
                package = spec.name if is_package else spec.name.rpartition(".")[0]
                names += _imported(found[spec.name], package)
    return dict(sorted(found.items()))


@contextlib.contextmanager
def importing(folder: Path, modules: Iterable[str] = ()) -> Iterator[None]:
    """Puts a folder first on the path, for the duration of a `with` block.

    Modules of the given names are imported anew in it, since one of the same name that is imported
    already may be of another file, or of an earlier version of the file.
    """
    before = {name: sys.modules.pop(name) for name in modules if name in sys.modules}
    sys.path.insert(0, str(folder.absolute()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.absolute()))
        sys.modules.update(before)


def _imported(path: Path, package: str = "") -> Iterator[str]:
    """Yields the names that the import statements of a file may import as modules."""
    try:
        tree = ast.parse(path.read_bytes()) if path.suffix == ".py" else ast.Module([], [])
    except (SyntaxError, ValueError):
        return  # which the import reports
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        if isinstance(node, ast.ImportFrom) and (package or not node.level):
            name = "." * node.level + (node.module or "")
            with contextlib.suppress(ImportError):  # beyond the top-level package
                base = importlib.util.resolve_name(name, package)
                yield from (f"{base}.{each.name}" for each in node.names)


def _specs(name: str) -> Iterator[ModuleSpec]:
    """Yields the packages around a module, and the module, as far as they exist."""
    path: Iterable[str] | None = None
    for each in itertools.accumulate(name.split("."), "{}.{}".format):
        if path is None:
            specs = (finder.find_spec(each, None) for finder in sys.meta_path)
        else:
            finders = map(pkgutil.get_importer, path)
            specs = (finder.find_spec(each) for finder in finders if finder is not None)
        spec = next(filter(None, specs), None)
        if spec is None:
            return
        yield spec
        path = spec.submodule_search_locations
        if path is None:
            return


def _is_own(spec: ModuleSpec) -> bool:
    if not spec.has_location or spec.origin is None:
        return False
    path = Path(spec.origin)
    installed = INSTALLED & set(path.parts)
    return not installed and not any(path.resolve().is_relative_to(each) for each in FOREIGN)
