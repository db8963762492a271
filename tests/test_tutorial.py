"""The tutorial runs from its first cell to its last, offline, and its networks learn.

After an edit, `jupyter nbconvert --to notebook --execute --inplace docs/tutorial.ipynb` stores its
outputs again.
"""

import ast
import builtins
import contextlib
import io
import json
import re
from pathlib import Path

import jax
import numpy as np

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


def code_cells():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def execute():
    """The names that the notebook defines, and what each of its cells prints."""
    import matplotlib

    matplotlib.use("Agg")
    names, printed = {"__name__": "tutorial"}, {}
    for cell in code_cells():
        code = compile("".join(cell["source"]), f"<{cell['id']}>", "exec")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, names)
        printed[cell["id"]] = out.getvalue()
    names["plt"].close("all")
    return names, printed


# One test, since the notebook would be executed once more by each worker that has one of several.
def test_the_networks_of_the_tutorial_learn(no_network):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        names, printed = execute()

    def number(cell):
        return float(re.search(r"\d+\.\d+", printed[cell])[0])

    # Loop, scan and unroll are compared by the cells themselves, as are the LSTM and TF1's weights.
    assert number("one-to-one") > 90
    assert number("one-to-many") < 0.05
    assert number("many-to-one") > 90
    for line in printed["many-to-many"].splitlines():
        word, answer = line.split(" → ")
        assert answer == word[::-1]
    _, light, network = (line.split()[1:] for line in printed["in-step"].splitlines())
    assert network == light

    norms = names["norms"]
    assert norms["tanh RNN"][59] < norms["LSTM, forget bias 1"][59] / 100
    assert norms["LSTM, forget bias 1"][59] < norms["LSTM, forget bias 3"][59] / 100
    assert norms["tanh RNN, large W"][59] > 100 * norms["tanh RNN, large W"][0]

    forget, marked = np.asarray(names["gates"]["f"])[:, 0], names["marked"]
    assert np.delete(forget, marked).mean() > 0.75
    assert forget[marked].max() < 0.5
    np.testing.assert_allclose(
        names["output"][:, 0], np.repeat([0.8, -0.6, 0.2], [6, 7, 7]), atol=0.2
    )

    records = names["records"]
    assert len(records) == 30
    assert records[-1]["test"] > 0.9
    assert records[-1]["loss"] < 0.2
    assert names["last_step"] == 600
    jax.tree.map(np.testing.assert_array_equal, names["last_state"]["params"], names["params"])
    best = max(records, key=lambda record: (record["validation"], record["step"]))
    assert (names["best_step"], names["chosen"]) == (best["step"], best["test"])


def test_the_experiment_needs_only_the_imports():
    cells = {cell["id"]: "".join(cell["source"]) for cell in code_cells()}
    chapter = ("data", "model", "train-step", "loop", "restore", "curves")
    tree = ast.parse("\n".join(cells[name] for name in ("imports", *chapter)))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    defined = {node.id for node in names if isinstance(node.ctx, ast.Store)} | set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.alias):
            defined.add(node.asname or node.name)
        elif isinstance(node, ast.FunctionDef):
            defined |= {node.name, *(argument.arg for argument in node.args.args)}
    assert {node.id for node in names} <= defined


def test_the_outputs_of_the_tutorial_are_stored():
    assert NOTEBOOK.stat().st_size < 600_000
    for cell in code_cells():
        source, outputs = "".join(cell["source"]), cell["outputs"]
        assert cell["execution_count"], cell["id"]
        assert all(output["output_type"] != "error" for output in outputs)
        text = "".join("".join(output.get("text", "")) for output in outputs)
        assert ("print(" in source) == bool(text), cell["id"]
        assert not re.search(r"/(home|root|tmp|work)\b|Warning", text)
        pictures = [output for output in outputs if "image/png" in output.get("data", {})]
        # nbconvert takes the text for readers without pictures from the metadata of the cell.
        assert bool(pictures) == ("alt" in cell["metadata"]), cell["id"]
