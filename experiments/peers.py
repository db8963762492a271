"""The tasks of experiments/benchmark.py in jaxrnn and in other libraries.

Each `make(task)` in `LIBRARIES` returns a function that runs `task.repeats` units and waits for
their results. The JAX libraries differ in `(apply, params)` alone, from which `scanned` creates the
program. A library is imported in the function that uses it, so that any of them may be missing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

BATCH, HIDDEN, CLASSES = 100, 128, 10
EVALUATION_BATCH = 500
PRODUCT = 2048  # side of the matrices that measure the floor


class Task(NamedTuple):
    """A task to time."""

    title: str
    cell: str = "lstm"
    time: int = 28
    features: int = 28
    train: bool = True
    examples: int = BATCH  # per unit of time
    repeats: int = 20  # units in one call
    dtype: str = "float32"
    products: str | None = None  # dtype of the operands of the products, if it is another
    hidden: int = HIDDEN
    masked: bool = False  # with lengths and resets, which only jaxrnn takes
    evaluation_batch: int = EVALUATION_BATCH

    @property
    def gates(self) -> int:
        """The number of gates of the cell."""
        return {"lstm": 4, "gru": 3, "rnn": 1}[self.cell]

    @property
    def flops(self) -> float:
        """The floating point operations of the matrix products of the recurrent layer."""
        rows, outputs = self.examples * self.time, self.gates * self.hidden
        forward = 2 * rows * (self.features + self.hidden) * outputs
        # The gradients of the kernels cost as much as the forward pass. The gradient of the state
        # costs a part of it; the gradient of the inputs is not needed.
        state = 2 * rows * self.hidden * outputs
        return forward + (forward + state if self.train else 0)

    @property
    def least_bytes(self) -> float:
        """The bytes that any implementation moves if all intermediate results stay on the chip.

        It reads the inputs and the parameters. For a gradient it reads the inputs again, and writes
        and reads the states. Adam reads and writes the parameters and two moments.
        """
        rows = self.examples * self.time
        parameters = (self.features + self.hidden + 1) * self.gates * self.hidden
        states = (2 if self.cell == "lstm" else 1) * self.hidden
        if not self.train:
            return 4 * (rows * self.features + parameters)
        return 4 * (rows * 2 * (self.features + states) + 6 * parameters)


def inputs(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Returns random sequences `[K, B, T, I]` and labels `[K, B]`."""
    rng = np.random.default_rng(0)
    shape = (task.repeats, task.examples, task.time, task.features)
    return rng.random(shape, np.float32), rng.integers(0, CLASSES, shape[:2])


def scanned(task: Task, apply: Callable, params: Any) -> tuple[Any, tuple[Any, ...]]:
    """Creates a program that scans train steps, or evaluates in batches, on one device.

    Returns:
        A jitted function from (carry, data) to (carry, results), which donates the carry, and its
        arguments.
    """
    import jax
    import jax.numpy as jnp
    import optax

    x, y = map(jnp.asarray, inputs(task))
    adam = optax.adam(1e-3)

    def evaluate(params, batch):
        return params, apply(params, batch).argmax(-1)

    def train(carry, batch):
        def loss(params):
            logits = apply(params, batch[0])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = adam.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    if task.train:
        body, carry, data = train, (params, adam.init(params)), (x, y)
    else:
        batches = x.reshape(-1, task.evaluation_batch, task.time, task.features)
        body, carry, data = evaluate, params, batches
    program = jax.jit(lambda carry, data: jax.lax.scan(body, carry, data), donate_argnums=0)
    return program, (jax.tree.map(jnp.copy, carry), data)


def repeated(program: Callable, arguments: tuple[Any, ...]) -> Callable[[], None]:
    """Returns a function that runs a program of `scanned`, each time from the last carry."""
    import jax

    carry, data = arguments

    def run():
        nonlocal carry
        carry, found = program(carry, data)
        jax.block_until_ready(found)

    return run


def in_jax(model: Callable, **options: Any) -> Callable[[Task], Callable[[], None]]:
    """Returns the `make(task)` of a JAX library, from a function of a task to (apply, params)."""
    return lambda task: repeated(*scanned(task, *model(task, **options)))


Model = tuple[Callable, Any]  # (apply, params)


@functools.cache
def initial_params(cell: Any, features: int, hidden: int) -> Any:
    """Initializes the parameters of a cell and of a readout."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def init(key):
        readout = jax.random.normal(key, (hidden, CLASSES)) * 0.1
        return cell.init(key, features), readout, jnp.zeros((1, CLASSES))

    return init(jax.random.key(0))


def jaxrnn_one(task: Task, peephole: bool = False, **options: Any) -> Model:
    """Jaxrnn on one device, with options of `jaxrnn.unroll`; with peepholes also with lengths."""
    if peephole and task.cell != "lstm":
        raise NotImplementedError
    import jax
    import jax.numpy as jnp

    import jaxrnn

    cell = getattr(jaxrnn, task.cell)(task.hidden, **({"peephole": True} if peephole else {}))

    def apply(params, x):
        x, params = jax.tree.map(lambda leaf: leaf.astype(task.dtype), (x, params))
        lengths = resets = None
        if peephole or task.masked:
            lengths = np.linspace(1, task.time, len(x)).astype(np.int32)
        if task.masked:
            resets = np.random.default_rng(1).random(x.shape[:-1]) < 0.05
        outputs, _ = jaxrnn.unroll(
            cell, params[0], x, lengths=lengths, resets=resets, dtype=task.products, **options
        )
        return (outputs[:, -1] @ params[1] + params[2]).astype(jnp.float32)

    return apply, initial_params(cell, task.features, task.hidden)


def jaxrnn_all(task: Task) -> Callable[[], None]:
    """Jaxrnn on all cores, as experiments/mnist.py trains."""
    import jax

    import jaxrnn
    from jaxrnn import training
    from jaxrnn.linen import Classifier, Stack
    from jaxrnn.training.train import replicate

    model = Classifier(Stack(getattr(jaxrnn, task.cell)(task.hidden)), CLASSES)
    trainer = training.Trainer(training.Fixed(model, training.optimizer(1e-3)))
    x, y = inputs(task)
    key, first = jax.random.key(0), x[0, :1]
    x, y = (255 * x.reshape(-1, *x.shape[2:])).astype(np.uint8), y.reshape(-1).astype(np.uint8)
    examples = replicate((x, y), trainer.mesh)
    state = trainer.init(key, {}, first)
    if not task.train:
        return lambda: trainer.evaluate(state, {}, examples)
    indices = np.arange(task.repeats * BATCH, dtype=np.int32).reshape(task.repeats, BATCH)

    def run():
        nonlocal state
        state, losses = trainer.advance(state, key, {}, examples, indices)
        losses.block_until_ready()

    return run


def jaxrnn_seeds(task: Task) -> Callable[[], None]:
    """Jaxrnn on all cores with a seed each, as experiments/ablate.py trains.

    A unit is a train step of one seed, and `task.repeats` must be a multiple of the number of
    cores. For comparison, the cores of "jaxrnn, all cores" share each batch of a single seed.
    """
    import jax

    import jaxrnn
    from jaxrnn import training
    from jaxrnn.linen import Classifier, Stack

    if not task.train:
        raise NotImplementedError
    cell, seeds = getattr(jaxrnn, task.cell)(task.hidden), jax.local_device_count()
    x, y = inputs(task)
    examples = (255 * x.reshape(-1, *x.shape[2:])).astype(np.uint8), y.reshape(-1).astype(np.uint8)

    def factory(hparams):
        return Classifier(Stack(cell), CLASSES), training.optimizer(hparams["learning_rate"])

    trainer = training.Trainer(factory, mesh=training.make_mesh(seeds, 1))
    chunks = training.fit(
        trainer,
        examples,
        steps=10**6,
        batch_size=BATCH,
        seed=np.arange(seeds),
        hparams={"learning_rate": np.full(seeds, 1e-3)},
        chunk=task.repeats // seeds,
    )

    def run():
        next(chunks)

    return run


def flax_linen(task: Task) -> Model:
    """flax.linen.RNN."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    cells = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell, "rnn": nn.SimpleCell}

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            cell = cells[task.cell](task.hidden, dtype=task.products)
            return nn.Dense(CLASSES)(jnp.asarray(nn.RNN(cell)(x))[:, -1])

    params = Model().init(jax.random.key(0), jnp.zeros((1, task.time, task.features)))
    return Model().apply, params


def flax_nnx(task: Task) -> Model:
    """flax.nnx.RNN."""
    import jax.numpy as jnp
    from flax import nnx

    cells = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell, "rnn": nnx.SimpleCell}

    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.rnn = nnx.RNN(cells[task.cell](task.features, task.hidden, rngs=rngs))
            self.readout = nnx.Linear(task.hidden, CLASSES, rngs=rngs)

        def __call__(self, x):
            # Given explicitly, since the default initial carry draws from a random stream.
            zero = jnp.zeros((len(x), task.hidden))
            start = (zero, zero) if task.cell == "lstm" else zero
            return self.readout(jnp.asarray(self.rnn(x, initial_carry=start))[:, -1])

    graph, params, rest = nnx.split(Model(), nnx.Param, ...)
    return lambda params, x: nnx.merge(graph, params, rest)(x), params


def haiku(task: Task) -> Model:
    """haiku.dynamic_unroll."""
    import haiku as hk  # pyright: ignore[reportMissingImports]
    import jax
    import jax.numpy as jnp

    cells = {"lstm": hk.LSTM, "gru": hk.GRU, "rnn": hk.VanillaRNN}

    def forward(x):
        core = cells[task.cell](task.hidden)
        state = core.initial_state(x.shape[0])
        outputs, _ = hk.dynamic_unroll(core, x, state, time_major=False)
        return hk.Linear(CLASSES)(outputs[:, -1])

    model = hk.without_apply_rng(hk.transform(forward))
    params = model.init(jax.random.key(0), jnp.zeros((1, task.time, task.features)))
    return model.apply, params


def equinox(task: Task) -> Model:
    """An equinox cell under jax.lax.scan, as in the documentation of equinox."""
    import equinox as eqx  # pyright: ignore[reportMissingImports]
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0))
    cells = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}
    cell = cells[task.cell](task.features, task.hidden, key=keys[0])
    readout = eqx.nn.Linear(task.hidden, CLASSES, key=keys[1])
    params, static = eqx.partition((cell, readout), eqx.is_array)

    def apply(params, x):
        cell, readout = eqx.combine(params, static)

        def one(row):
            zero = jnp.zeros(task.hidden)
            start = (zero, zero) if task.cell == "lstm" else zero
            state, _ = jax.lax.scan(lambda state, x: (cell(x, state), None), start, row)
            return readout(state[0] if task.cell == "lstm" else state)

        return jax.vmap(one)(x)

    return apply, params


def keras(task: Task) -> Model:
    """Keras 3 on the JAX backend."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras  # pyright: ignore[reportMissingImports]

    layer = {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}[task.cell]
    model = keras.Sequential(
        [
            keras.Input((task.time, task.features)),
            getattr(keras.layers, layer)(task.hidden),
            keras.layers.Dense(CLASSES),
        ]
    )
    params = [variable.value for variable in model.trainable_variables]
    rest = [variable.value for variable in model.non_trainable_variables]
    return lambda p, x: model.stateless_call(p, rest, x)[0], params


def torch(task: Task, compiled: bool = False, graph: bool = False) -> Callable[[], None]:
    """torch.nn on the CPU (oneDNN), or on the GPU where there is one (cuDNN), as a CUDA graph."""
    import torch  # pyright: ignore[reportMissingImports]

    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = layers[task.cell](task.features, task.hidden, batch_first=True)
            self.readout = torch.nn.Linear(task.hidden, CLASSES)

        def forward(self, x):
            return self.readout(self.rnn(x)[0][:, -1])

    model = Model().to(device)
    forward = torch.compile(model) if compiled else model
    adam = torch.optim.Adam(model.parameters(), 1e-3, capturable=graph)
    x, y = (torch.from_numpy(array).to(device) for array in inputs(task))
    bfloat16 = "bfloat16" in (task.dtype, task.products)

    def mixed():
        # A graph must not use copies of the weights that autocast cached before it.
        return torch.autocast(device, torch.bfloat16, enabled=bfloat16, cache_enabled=not graph)

    def evaluate():
        with torch.inference_mode(), mixed():
            batches = x.flatten(0, 1).split(task.evaluation_batch)
            return torch.cat([forward(batch).argmax(-1) for batch in batches])

    def train():
        loss = torch.zeros(())
        for batch, labels in zip(x, y, strict=True):
            adam.zero_grad()
            with mixed():
                loss = torch.nn.functional.cross_entropy(forward(batch), labels)
            loss.backward()
            adam.step()
        return loss

    program = train if task.train else evaluate
    if not graph:
        return lambda: program().cpu()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # warms up, so that the graph has no allocation or tuning
            program()
    torch.cuda.current_stream().wait_stream(stream)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        found = program()

    def run():
        recorded.replay()
        found.cpu()

    # The graph does not keep the arrays that it reads, such as the inputs. Something else has to.
    run.keep = program  # pyright: ignore[reportFunctionMemberAccess]
    return run


def onnx(task: Task) -> Callable[[], None]:
    """ONNX Runtime's LSTM operator; evaluation only."""
    if task.train or task.cell != "lstm":
        raise NotImplementedError
    import onnxruntime  # pyright: ignore[reportMissingImports]
    from onnx import TensorProto, helper, numpy_helper  # pyright: ignore[reportMissingImports]

    rng = np.random.default_rng(0)
    shapes = {
        "W": (1, 4 * task.hidden, task.features),
        "R": (1, 4 * task.hidden, task.hidden),
        "B": (1, 8 * task.hidden),
        "K": (task.hidden, CLASSES),
    }
    weights = [
        numpy_helper.from_array((rng.standard_normal(shape) * 0.1).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    axis = numpy_helper.from_array(np.array([0]), "axis")
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R", "B"], ["", "h"], hidden_size=task.hidden),
        helper.make_node("Squeeze", ["h", "axis"], ["last"]),
        helper.make_node("MatMul", ["last", "K"], ["logits"]),
    ]
    value = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "lstm",
        [value("x", shape=[task.time, "batch", task.features])],
        [value("logits", shape=["batch", CLASSES])],
        [*weights, axis],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    batches = np.split(
        inputs(task)[0][0].swapaxes(0, 1), task.examples // task.evaluation_batch, axis=1
    )

    def evaluate():
        for batch in batches:
            np.asarray(session.run(None, {"x": batch})[0]).argmax(-1)

    return evaluate


def matrix_product(task: Task) -> Callable[[], None]:
    """A large matrix product, whose rate gives the floor; it does not depend on the task."""
    import jax
    import jax.numpy as jnp

    matrix = jnp.ones((PRODUCT, PRODUCT))
    program = jax.jit(lambda a: a @ a)
    return lambda: program(matrix).block_until_ready()


FLOOR, SEEDS = "floor", "jaxrnn, a seed a core"
ALL_CORES = ("jaxrnn, all cores", SEEDS)
LIBRARIES: dict[str, tuple[Callable, str]] = {
    "jaxrnn": (in_jax(jaxrnn_one), "jax"),
    "jaxrnn, all cores": (jaxrnn_all, "jax"),
    SEEDS: (jaxrnn_seeds, "jax"),
    "jaxrnn, scan": (in_jax(jaxrnn_one, implementation="scan"), "jax"),
    "jaxrnn, peepholes and lengths": (in_jax(jaxrnn_one, peephole=True), "jax"),
    "jaxrnn, cudnn": (in_jax(jaxrnn_one, implementation="cudnn"), "jax"),
    "flax.linen": (in_jax(flax_linen), "flax"),
    "flax.nnx": (in_jax(flax_nnx), "flax"),
    "haiku": (in_jax(haiku), "haiku"),
    "equinox": (in_jax(equinox), "equinox"),
    "keras (jax)": (in_jax(keras), "keras"),
    "torch": (torch, "torch"),
    "torch.compile": (partial(torch, compiled=True), "torch"),
    "onnxruntime": (onnx, "onnxruntime"),
    FLOOR: (matrix_product, "jax"),
}
