"""Every option of experiments/mnist.py arrives where it is used, in a run and in a study."""

import contextlib
import dataclasses
import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import ablate
import cells
import experiment
import jax
import jax.numpy as jnp
import jobs
import mnist
import numpy as np
import optax
import pytest
import run_study
import train
from errors import OptionError
from idx_files import write
from options import RECIPES, Config

import jaxrnn
from jaxrnn import training
from jaxrnn.renet import ReNet
from jaxrnn.residual import ResidualClassifier
from jaxrnn.training import data, tasks
from jaxrnn.training.run import OtherConfiguration

pytestmark = pytest.mark.usefixtures("standard_promotion")

RNG = np.random.default_rng(0)
SPLITS = [
    data.Split(RNG.integers(1, 256, (n, 28, 28), np.uint8), np.arange(n, dtype=np.uint8) % 10)
    for n in (200, 10, 20)
]
DATASET = data.Dataset("digits", *SPLITS)
PLAIN = {"dataset": "digits", "hidden_size": 4, "steps": 20, "devices": 1}
KEY = jax.random.key(0)


class FitError(Exception):
    """Raised in place of training."""


@pytest.fixture
def capture(monkeypatch, tmp_path):
    """A function from a script and options to what `training.fit` is called with there."""
    found = SimpleNamespace(saved=[])

    def fit(trainer, examples, evaluations, **options):
        found.trainer, found.examples, found.evaluations = trainer, examples, evaluations
        found.options = options
        hparams = {name: values[0] for name, values in options.get("hparams", {}).items()}
        found.model, found.optimizer = trainer.factory(hparams)
        losses, metrics = np.zeros(5), {"test": 0.5}
        if "hparams" not in options:
            for step in range(5, options["steps"] + 1, 5):
                yield training.Progress(step, losses, metrics, {}, None)
        raise FitError

    class Saves:
        """In place of checkpoints."""

        restore = staticmethod(lambda like: None)
        save = staticmethod(lambda step, state, score: found.saved.append(step))

    def load(name, data_dir=None, validation_size=5000):
        found.loaded = name, data_dir, validation_size
        return DATASET

    def init(trainer, key, hparams, *inputs):
        found.key = key

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(training.Trainer, "init", init)
    monkeypatch.setattr(train, "Checkpoints", lambda *_, **__: contextlib.nullcontext(Saves()))
    monkeypatch.setattr(train, "load_dataset", load)

    def capture(script, **options):
        config = Config(**{**PLAIN, "out": tmp_path / "run", **options})
        found.config = config
        with contextlib.suppress(FitError):
            if script == "mnist":
                mnist.main(config)
            else:
                job = jobs.Job("a setting", config, config.seed, "an identity")
                list(jobs.run_batch(config, [job], DATASET, 2))
            pytest.fail("nothing was trained")
        return found

    return capture


def cell_params(found, inputs=3):
    cell = found.model.cell if isinstance(found.model, ReNet) else found.model.stack.cell
    return cell.init(KEY, inputs)


def update(found, gradient=1.0, steps=1):
    """What the last of several steps on the same gradient adds to the parameter 0."""
    params = {"w": jnp.float32(0.0)}
    state, updates = found.optimizer.init(params), None
    for _ in range(steps):
        updates, state = found.optimizer.update({"w": jnp.float32(gradient)}, state, params)
    return float(updates["w"])


def is_order(found):
    np.testing.assert_array_equal(found.examples[0], SPLITS[0].images.transpose(0, 2, 1))
    np.testing.assert_array_equal(found.evaluations["test"][0], SPLITS[2].images.transpose(0, 2, 1))


def is_delay(found):
    for (sequences, _), split in (
        (found.examples, SPLITS[0]),
        (found.evaluations["validation"], SPLITS[1]),
        (found.evaluations["test"], SPLITS[2]),
    ):
        np.testing.assert_array_equal(sequences[:, :28], split.images)
        np.testing.assert_array_equal(sequences[:, 28:], np.zeros((len(sequences), 3, 28)))


def is_test_delay(found):
    assert found.evaluations["test"][0].shape[1:] == (31, 28)
    assert found.evaluations["validation"][0].shape[1:] == (28, 28)
    assert found.examples[0].shape[1:] == (28, 28)


def is_noise(found):
    padding = [found.examples[0][:, 28:]]
    padding += [found.evaluations[name][0][:, 28:] for name in ("validation", "test")]
    for noise in padding:
        assert noise.shape[1:] == (3, 28)
        assert noise.min() < 10
        assert noise.max() > 245
    assert (padding[0][:10] != padding[1]).any()
    assert (padding[0][:20] != padding[2]).any()


def is_task(found):
    expected = tasks.make("parity", 7, 9)
    evaluations = found.evaluations
    for split, name in ((found.examples, "train"), (evaluations["test"], "test")):
        jax.tree.map(np.testing.assert_array_equal, split, getattr(expected, name))
    assert found.trainer.loss_fn == tasks.cross_entropy
    assert found.trainer.metric_fn == tasks.accuracy
    assert found.model.num_classes == 2


def is_forget_bias(found):
    np.testing.assert_array_equal(cell_params(found).bias[4:8], np.full(4, 3.0))


def is_chrono(found):
    bias = cell_params(found).bias
    np.testing.assert_allclose(bias[:4], -bias[4:8])
    assert np.all(np.exp(bias[4:8]) <= 49.001)


def is_recurrent_init(found):
    for gate in np.split(cell_params(found).recurrent_kernel, 4, axis=1):
        np.testing.assert_array_equal(gate, np.eye(4))


def is_init_scale(found):
    plain = jaxrnn.lstm(4).init(KEY, 3)
    np.testing.assert_allclose(cell_params(found).kernel, 0.25 * plain.kernel, rtol=1e-6)
    np.testing.assert_array_equal(cell_params(found).bias, plain.bias)


def is_patch(found):
    assert isinstance(found.model, ReNet)
    assert found.model.patches == (7,)
    assert found.trainer.slices == 5  # of twenty images, on a CPU


def is_augment(found):
    distortion = training.Distortion(order="permuted")
    assert found.trainer.loss_fn == training.AugmentedCrossEntropy(distortion)


def is_label_smoothing(found):
    assert found.trainer.loss_fn == training.AugmentedCrossEntropy(None, 0.1)


def is_mixup(found):
    assert found.trainer.loss_fn == training.AugmentedCrossEntropy(None, 0.0, 0.2)


def is_clipped(found):
    # Adam divides a gradient by its size, unless that is below its epsilon.
    assert -2e-4 < update(found) < 0


def is_onecycle(found):
    first, middle = update(found), update(found, steps=7)
    assert -1e-3 / 20 < first < 0
    assert middle < 10 * first


def update_of(found, path, gradient):
    """What one step adds to the parameter 2 of this path."""
    params = jnp.float32(2.0)
    for name in reversed(path):
        params = {name: params}
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, gradient), params)
    updates, _ = found.optimizer.update(grads, found.optimizer.init(params), params)
    return float(jax.tree.leaves(updates)[0])


def is_blocks(found):
    model = found.model
    assert isinstance(model, ResidualClassifier)
    assert (model.features, model.num_layers, model.dropout) == (4, 3, 0.25)


STEM = {"blocks": True, "stride": 4, "stem_states": 5}


def has_stem(found):
    assert found.model.stride == 4
    params = found.model.stem.init(jax.random.key(0), 4)
    assert params.input_kernel.shape == (2, 1, 5)
    assert params.output_kernel.shape == (2, 5, 4)


def is_weight_decay(found):
    assert update_of(found, ["readout", "kernel"], 0.0) == pytest.approx(-1e-3 * 0.5 * 2)


def is_recurrence_rate(found):
    assert update_of(found, ["cell", "nu"], 1.0) == pytest.approx(-1e-3 * 0.5, rel=1e-4)


def is_seed(found):
    assert np.ravel(found.options["seed"]) == [7]
    if hasattr(found, "key"):
        assert found.key == jax.random.key(7)


# Of each option a value that is not the default, and what it changes of the call of `fit`.
STACK = ("num_layers", "bidirectional", "residual", "dropout", "learn_initial_state", "truncate")
CASES = {
    "dataset": ({"dataset": "kmnist"}, lambda found: found.loaded[0] == "kmnist"),
    "data_dir": (
        {"dataset": "mnist", "data_dir": Path("d")},
        lambda found: found.loaded[1] == Path("d"),
    ),
    "validation_size": ({"validation_size": 7}, lambda found: found.loaded[2] == 7),
    "order": ({"order": "columns"}, is_order),
    "delay": ({"delay": 3}, is_delay),
    "test_delay": ({"test_delay": 3}, is_test_delay),
    "noise": ({"delay": 3, "noise": True}, is_noise),
    **dict.fromkeys(
        ("task", "length", "test_length"),
        ({"dataset": "auto", "task": "parity", "length": 7, "test_length": 9}, is_task),
    ),
    "cell": ({"cell": "gru"}, lambda found: isinstance(cell_params(found), jaxrnn.GRUParams)),
    "cell_options": (
        {"cell_options": ("projection_size=2",)},
        lambda found: cell_params(found).recurrent_kernel.shape == (2, 16),
    ),
    "hidden_size": (
        {"hidden_size": 5},
        lambda found: cell_params(found).recurrent_kernel.shape == (5, 20),
    ),
    **{
        name: (
            {"num_layers": 2, name: value},
            lambda found, name=name, value=value: getattr(found.model.stack, name) == value,
        )
        for name, value in zip(STACK, (2, True, True, 0.25, True, 9), strict=True)
    },
    "blocks": ({"blocks": True, "num_layers": 3, "dropout": 0.25}, is_blocks),
    "stride": (STEM, has_stem),
    "stem_states": (STEM, has_stem),
    "patch": ({"patch": 7}, is_patch),
    "augment": ({"augment": True, "order": "permuted"}, is_augment),
    "mixup": ({"mixup": 0.2}, is_mixup),
    "label_smoothing": ({"label_smoothing": 0.1}, is_label_smoothing),
    "forget_bias": ({"forget_bias": 3.0}, is_forget_bias),
    "chrono": ({"chrono": 50.0}, is_chrono),
    "recurrent_init": ({"recurrent_init": "identity"}, is_recurrent_init),
    "init_scale": ({"init_scale": 0.25}, is_init_scale),
    "zoneout": (
        {"zoneout": 0.25},
        lambda found: found.model.stack.regularizer == jaxrnn.Regularizer(zoneout=0.25),
    ),
    **{
        name: (
            {"recurrent_dropout": 0.25, "tied": tied},
            lambda found, tied=tied: (
                found.model.stack.regularizer
                == jaxrnn.Regularizer(recurrent_dropout=0.25, tied=tied)
            ),
        )
        for name, tied in (("recurrent_dropout", True), ("tied", False))
    },
    "weight_dropout": (
        {"weight_dropout": 0.25},
        lambda found: found.model.stack.regularizer == jaxrnn.Regularizer(weight_dropout=0.25),
    ),
    "batch_size": ({"batch_size": 50}, lambda found: found.options["batch_size"] == 50),
    "steps": ({"steps": 30}, lambda found: found.options["steps"] == 30),
    "learning_rate": (
        {"learning_rate": 0.5},
        lambda found: update(found) == pytest.approx(-0.5, rel=1e-4),
    ),
    "optimizer": (
        {"optimizer": "momentum"},
        lambda found: update(found, 4.0, 2) == pytest.approx(-1e-3 * 4 * 1.9),
    ),
    "schedule": ({"schedule": "onecycle"}, is_onecycle),
    "weight_decay": ({"weight_decay": 0.5}, is_weight_decay),
    "recurrence_rate": ({"recurrence_rate": 0.5}, is_recurrence_rate),
    "clip_norm": ({"clip_norm": 1e-9}, is_clipped),
    "eval_every": ({"eval_every": 3}, lambda found: found.options["eval_every"] == 3),
    "seed": ({"seed": 7}, is_seed),
    "checkpoint_every": ({"checkpoint_every": 10}, lambda found: found.saved == [10, 20]),
    "devices": ({"devices": 2}, lambda found: found.trainer.mesh.shape["batch"] == 2),
}
# These have tests of their own, below, in test_event_file.py and in test_hosts.py.
APART = {"recipe", "out", "resume", "tensorboard"}
APART |= {"distributed", "coordinator", "num_processes", "process_id"}


def test_every_option_has_a_case():
    assert CASES.keys() | APART == {field.name for field in dataclasses.fields(Config)}
    assert not CASES.keys() & APART


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_made_as_the_option_says(name, capture):
    options, check = CASES[name]
    assert check(capture("mnist", **options)) in (True, None)


@pytest.mark.parametrize("name", [name for name in CASES if name not in jobs.FIXED])
def test_a_study_is_made_as_the_option_says(name, capture):
    options, check = CASES[name]
    assert check(capture("ablate", **options)) in (True, None)


def test_without_options_nothing_of_that_is_so(capture):
    """That no case would hold of the defaults too."""
    found = capture("mnist", dataset="mnist", steps=25)
    found.saved = found.saved[:-1]
    vacuous = []
    for name, (_, check) in CASES.items():
        with contextlib.suppress(AssertionError, AttributeError, ValueError, FloatingPointError):
            if check(found) in (True, None):
                vacuous.append(name)
    assert vacuous == []


def test_a_run_is_opened_where_and_as_the_options_say(capture, tmp_path):
    capture("mnist", out=tmp_path / "a")
    assert (tmp_path / "a" / "config.json").exists()
    left = tmp_path / "a" / "curves.png"
    left.write_text("of the run before")
    capture("mnist", out=tmp_path / "a", resume=True)
    assert left.exists()
    capture("mnist", out=tmp_path / "a", resume=False)
    assert not left.exists()


def test_a_recipe_gives_defaults_that_options_override(monkeypatch, capsys):
    def parsed(*words):
        return mnist.command_line(words)

    assert parsed() == Config()
    fast = parsed("--recipe", "fast", "--steps", "7")
    assert fast == Config(**{**RECIPES["fast"], "recipe": "fast", "steps": 7})
    assert parsed("--recipe=fast").schedule == "onecycle"
    own = parsed("--cell", "my.py:cell", "--cell-options", "a=1", "--cell-options", "b=(2, 3)")
    assert (own.cell, own.cell_options) == ("my.py:cell", ("a=1", "b=(2, 3)"))
    assert parsed("--recipe", "best", "--clip-norm", "None", "--no-augment") == Config(
        **{**RECIPES["best"], "recipe": "best", "clip_norm": None, "augment": False}
    )
    monkeypatch.setattr(sys, "argv", ["mnist.py", "--seed", "3"])
    assert mnist.command_line() == Config(seed=3)
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match="0"):
        parsed("--help", "--recipe", "best")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--patch INT" in shown
    assert "divide 28. [default: 4]" in shown


SIZES = {
    "tutorial": 81_674,
    "fast": 81_674,
    "best": 231_690,
    "sequential-mnist": 50_570,
    "permuted-mnist": 50_570,
    "state-space": 64_982,
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_of_options_that_go_together(recipe):
    config = Config(**RECIPES[recipe], recipe=recipe)
    config.check()
    model = experiment.check_model(config)
    variables = jax.eval_shape(model.init, KEY, experiment.blank_example(config))
    assert training.count_parameters(variables) == SIZES[recipe]


def test_hyperparameters_may_differ_within_a_program():
    """One run for each that has another value, and one without: all learn differently."""
    names = [name for name in jobs.HPARAMS if name != "learning_rate"]
    config = Config(hidden_size=4, num_layers=2, tied=True, **dict.fromkeys(names, 0.5))
    hparams = {name: np.full(len(names) + 1, 0.5) for name in names}
    hparams["learning_rate"] = np.full(len(names) + 1, 0.1)
    for place, name in enumerate(names):
        hparams[name][place] = 0.2
    trainer = training.Trainer(experiment.Factory(config), mesh=training.make_mesh(1, 1))
    images, labels = SPLITS[1]
    (progress,) = training.fit(
        trainer,
        (images[:, :4, :4], labels),
        steps=3,
        batch_size=10,
        seed=[0] * (len(names) + 1),
        hparams=hparams,
    )
    assert np.isfinite(progress.losses).all()
    assert len(set(progress.losses.mean(1).tolist())) == len(names) + 1


OWN = """
import jaxrnn

def cell(hidden_size, *, forget_bias=1.0, scale=1.0):
    return jaxrnn.scaled(jaxrnn.lstm(hidden_size, forget_bias=forget_bias), scale)

def number(hidden_size):
    return hidden_size

def failing(hidden_size):
    raise ValueError("not\\ntoday")

constant = 3

def late(hidden_size, *, init=0, step=0, traced=False):
    lstm = jaxrnn.lstm(hidden_size)

    def failing_init(*args):
        1 / (init != 1)
        return lstm.init(*args)

    def failing_step(*args):
        1 + step
        if traced and args[2].sum():
            pass
        return lstm.step(*args)

    return jaxrnn.Cell(failing_init, lstm.initial_state, failing_step)
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_a_cell_of_ones_own_takes_the_options_of_its_constructor(own, capture):
    options = {"cell": f"{own}:cell", "forget_bias": 3.0, "cell_options": ("scale=0.25",)}
    for script in ("mnist", "ablate"):
        found = capture(script, **options)
        np.testing.assert_array_equal(cell_params(found).bias[4:8], np.full(4, 3.0))
        expected = 0.25 * jaxrnn.lstm(4).init(KEY, 3).kernel
        np.testing.assert_allclose(cell_params(found).kernel, expected, rtol=1e-6)


def test_a_run_is_not_resumed_with_another_cell(own, capture, monkeypatch):
    found = capture("mnist", cell=f"{own}:cell")
    config = train.Run(found.config.out).read("config.json")["config"]
    assert config["cell"] == f"{own}:cell"
    assert config["cell_sha256"] == cells.cell_sha256(f"{own}:cell")
    monkeypatch.chdir(own.parent)
    capture("mnist", cell="own.py:cell")  # the same file
    own.write_text(OWN.replace("scale=1.0", "scale=2.0"))
    with pytest.raises(OtherConfiguration, match=r" \(\S*own\.py:cell has changed\)"):
        mnist.main(found.config)
    with pytest.raises(OptionError, match=r"own\.py:cell has changed since .* was trained"):
        experiment.load_run(found.config.out)


def test_a_study_tells_cells_of_other_contents_apart(own):
    first = jobs.changes(Config(cell=f"{own}:cell"))
    own.write_text(OWN + "\n")
    second = jobs.changes(Config(cell=f"{own}:cell"))
    assert first["cell_sha256"] != second["cell_sha256"]
    assert "cell_sha256" not in jobs.changes(Config(cell="gru"))
    config = ablate.Config("grid", cell=f"{own}:cell", cell_options=("scale=0.5",))
    config = dataclasses.replace(config, vary=("learning_rate=1e-3,1e-2",))
    settings = run_study.resolve(config).settings
    assert {setting.cell for setting in settings.values()} == {f"{own}:cell"}
    assert {setting.cell_options for setting in settings.values()} == {("scale=0.5",)}
    assert f"--cell {own}:cell --cell-options scale=0.5" in run_study.command(config)


IMPORTING = """
import math

import jax
import lab.gates
from widths import WIDTH

def cell(hidden_size, *, scale=1.0):
    return lab.gates.make(WIDTH * hidden_size, scale)
"""
MODULES = {
    "widths.py": "WIDTH = 2",
    "lab/gates.py": "import jaxrnn\nfrom .deep import scaled\n\n"
    "def make(size, scale):\n    return scaled(jaxrnn.lstm(size), scale)\n",
    "lab/deep/__init__.py": "from jaxrnn import scaled\n",
    "unused.py": "",
}


@pytest.fixture
def importing(tmp_path):
    """A cell's file that imports modules of the user's own, of a folder without __init__.py too."""
    (tmp_path / "lab" / "deep").mkdir(parents=True)
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    path = tmp_path / "own.py"
    path.write_text(IMPORTING)
    yield path
    for name in ("widths", "lab", "lab.gates", "lab.deep"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("changed", ["own.py", "widths.py", "lab/gates.py", "lab/deep/__init__.py"])
def test_a_changed_import_is_another_cell(importing, capture, changed):
    found = capture("mnist", cell=f"{importing}:cell")
    assert cell_params(found).recurrent_kernel.shape == (8, 32)  # the module beside it is found
    before = jobs.changes(found.config)
    assert before["cell_sha256"].keys() == {"own.py", *MODULES} - {"unused.py"}
    (importing.parent / "unused.py").write_text("other = 1")
    assert jobs.changes(found.config) == before
    path = importing.parent / changed
    path.write_text(path.read_text() + "\nother = 1\n")
    assert jobs.changes(found.config) != before
    with pytest.raises(OtherConfiguration, match=rf" \({changed} has changed\)"):
        mnist.main(found.config)
    with pytest.raises(OptionError, match=rf"^{changed} has changed since \S+ was trained with it"):
        experiment.load_run(found.config.out)


def test_each_file_imports_its_own_neighbours_as_they_are_now(tmp_path):
    """Also those that are named as a module of the experiments, or that another cell imports."""
    text = (
        "import jaxrnn\nfrom models import WIDTH\n\ndef cell(size):\n    return jaxrnn.rnn(WIDTH)"
    )
    for width in (2, 3):
        folder = tmp_path / str(width)
        folder.mkdir()
        (folder / "own.py").write_text(text)
        (folder / "models.py").write_text(f"WIDTH = {width}")
    experiments_models = sys.modules["models"]

    def width(folder):
        cell = cells.make_cell(f"{tmp_path / folder / 'own.py'}:cell", 1)
        return len(cell.init(KEY, 1).bias)

    assert [width("2"), width("3"), width("2")] == [2, 3, 2]
    (tmp_path / "2" / "models.py").write_text("WIDTH = 50")
    assert width("2") == 50
    assert sys.modules["models"] is experiments_models
    assert str(tmp_path / "2") not in sys.path


def test_a_file_without_imports_of_its_own_keeps_its_hash(own):
    """By which the records of earlier studies are found."""
    assert cells.cell_sha256(f"{own}:cell") == hashlib.sha256(own.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"cell": "OWN:no_such"},
            "does not define 'no_such'. Choose from cell, number, failing, late",
        ),
        ({"cell": "OWN"}, "own.py names no function; write OWN:NAME (cell, number, failing, late)"),
        ({"cell": "OWN:cel"}, "does not define 'cel'; did you mean cell? Choose from cell, "),
        ({"cell": "OWN:constant"}, "constant is not a function"),
        ({"cell": "OWN:number"}, "returns int, expected a jaxrnn.Cell"),
        ({"cell": "OWN:failing"}, "OWN:failing fails: ValueError: not today (own.py, line 11)"),
        (
            {"cell": "OWN:cell", "cell_options": ("scale='x'",)},
            "--cell OWN:cell with scale='x' fails: Type",  # a TypeCheckError here
        ),
        (
            {"cell": "OWN:late", "cell_options": ("init=1",)},
            "--cell OWN:late with init=1 fails: ZeroDivisionError: division by zero (own.py, line ",
        ),
        (
            {"cell": "OWN:late", "cell_options": ("step='x'",)},
            "--cell OWN:late with step='x' fails: TypeError: unsupported operand type(s) for +: "
            "'int' and 'str' (own.py, line 23)",
        ),
        (
            {"cell": "OWN:late", "cell_options": ("traced=True",)},
            "--cell OWN:late with traced=True fails: TracerBoolConversionError: ",
        ),
        ({"cell_options": ("projection_size='x'",)}, "--cell lstm: "),
        ({"cell": "nowhere.py:cell"}, "nowhere.py cannot be read: No such file"),
        ({"cell": "lstn"}, "--cell does not take 'lstn'; did you mean lstm or lstm-np? Choose fr"),
        ({"cell": "OWN:cell", "chrono": 9.0}, "cell does not take --chrono"),
        ({"cell": "OWN:cell", "cell_options": ("depth=2",)}, "does not take --cell-options depth"),
        ({"cell_options": ("peephole",)}, "must be key=value, got 'peephole'"),
        (
            {"cell_options": ("peephol=True",)},
            "does not take --cell-options peephol; did you mean peephole? Choose from ",
        ),
        (
            {"cell_options": ("bidirectional=yes",)},
            "--cell-options bidirectional: not an option of the cell; use --bidirectional",
        ),
        ({"cell_options": ("a=1", "a=2")}, "--cell-options has a twice"),
        ({"cell_options": ("activation=tanh",)}, "tanh is not a Python literal"),
        ({"cell_options": ("forget_bias=2.0",), "forget_bias": 1.0}, "is also given as --forget-b"),
        ({"cell": "mlp", "cell_options": ("a=1",)}, "does not take --cell-options"),
    ],
)
def test_a_cell_that_cannot_be_made_is_one_line(options, words, own):
    options["cell"] = options.get("cell", "lstm").replace("OWN", str(own))
    with pytest.raises(OptionError) as error:
        experiment.resolve(Config(**PLAIN, **options), DATASET)
    assert words.replace("OWN", str(own)) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_fails_is_one_line(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    with pytest.raises(OptionError, match=r"broken\.py fails with ModuleNotFoundError: No module"):
        cells.make_cell(f"{tmp_path / 'broken.py'}:cell", 3)


def test_an_empty_environment_variable_counts_as_unset(tmp_path, home, no_network, monkeypatch):
    monkeypatch.chdir(write(tmp_path / "d"))
    monkeypatch.setenv("JAXRNN_DATA_DIR", "")
    assert experiment.load_dataset("auto", None, 20).name == "digits"


def test_too_large_a_validation_set_names_the_option(tmp_path):
    words = "^--validation-size must be less than 40, the number of examples in the training file"
    with pytest.raises(OptionError, match=words):
        experiment.load_dataset("mnist", write(tmp_path), 40)


@pytest.mark.parametrize("name", ["adamw", "nadam", "rmsprop"])
def test_the_optimizers_are_optaxs(name):
    def update(optimizer):
        params = {"w": jnp.float32(0.5)}
        return optimizer.update({"w": jnp.float32(2.0)}, optimizer.init(params), params)[0]["w"]

    ours = update(experiment.build_optimizer(Config(optimizer=name)))
    np.testing.assert_allclose(ours, update(getattr(optax, name)(1e-3)), rtol=1e-6)
