"""Programs of training and evaluation, compiled for devices that are not attached.

Sizes are those of the tutorial (28 steps of 28 features, 128 units), with few examples per device.
"""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn
from jaxrnn import training
from jaxrnn.backends import elementwise
from jaxrnn.linen import RNN, Classifier, Stack
from jaxrnn.training.predict import _predict
from jaxrnn.training.train import BATCH, RUN, Trainer, TrainState, run_keys, train_step

TIME, FEATURES, UNITS = 28, 28, 128
EXAMPLES = 16  # per device
CHUNK = 5  # training steps
OPTIMIZER = training.optimizer(1e-3)
REGULARIZER = jaxrnn.Regularizer(zoneout=0.1, recurrent_dropout=0.1, tied=True)


def mesh(devices, runs=1):
    """Returns a mesh like that of `jaxrnn.training.make_mesh`."""
    return Mesh(np.array(devices).reshape(runs, -1), (RUN, BATCH))


def on(mesh, tree, *spec):
    """Returns the shapes of arrays with their sharding over a mesh."""
    sharding = NamedSharding(mesh, P(*spec))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def one_step(mesh, cell, implementation, features=FEATURES, **options):
    """Compiles a training step of one layer with Adam, lengths and resets."""
    layer = RNN(cell, implementation=implementation, **options)

    def loss(model, params, batch, key):
        inputs, lengths, resets = batch
        outputs = model.apply(
            {"params": params}, inputs, seq_lengths=lengths, resets=resets, rngs={"dropout": key}
        )
        return (outputs**2).mean()

    def init():
        inputs = jnp.zeros((1, 1, features))
        params = RNN(cell, implementation="scan").init(jax.random.key(0), inputs)["params"]
        return TrainState(jnp.int32(0), params, OPTIMIZER.init(params))

    batch = (
        array(EXAMPLES, TIME, features),
        array(EXAMPLES, dtype=jnp.int32),
        array(EXAMPLES, TIME, dtype=bool),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = jax.jit(
        lambda state, batch, key: train_step(layer, OPTIMIZER, state, batch, loss_fn=loss, key=key)
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # in which a kernel sees the device
        return step.lower(*on(mesh, (jax.eval_shape(init), batch, key))).compile()


def classifier(cell, implementation=None, **stack):
    return Classifier(Stack(cell, implementation=implementation, **stack), 10)


def noisy_classifier(implementation=None):
    """Returns a two-layer bidirectional classifier with all random regularization."""
    return classifier(
        jaxrnn.gru(UNITS),
        implementation,
        num_layers=2,
        bidirectional=True,
        dropout=0.1,
        regularizer=REGULARIZER,
    )


def _run(mesh, model, seeds):
    """Returns a trainer, the shapes of its runs, and the partitions of the arrays of each run."""
    trainer = Trainer(training.Fixed(model, OPTIMIZER), mesh=mesh)
    key = jax.eval_shape(lambda: run_keys(0 if seeds is None else range(seeds)))
    inputs = array(1, TIME, FEATURES)
    state = jax.eval_shape(partial(Trainer.init, trainer), key, {}, inputs)
    own = () if seeds is None else (RUN,)
    return trainer, on(mesh, state, *own), on(mesh, key, *own), own


def _examples(mesh, count, *spec):
    images = array(count, TIME, FEATURES, dtype=jnp.uint8)
    return on(mesh, (images, array(count, dtype=jnp.uint8)), *spec)


def chunk(mesh, model, seeds=None, examples=EXAMPLES):
    """Compiles `Trainer.advance`, several training steps of one run or of several runs."""
    trainer, state, key, own = _run(mesh, model, seeds)
    each = () if seeds is None else (seeds,)
    indices = array(*each, CHUNK, examples * mesh.shape[BATCH], dtype=jnp.int32)
    data, indices = _examples(mesh, 1000), on(mesh, indices, *own, None, BATCH)
    return Trainer.advance.lower(trainer, state, key, {}, data, indices).compile()


def check_memory(mesh, model):
    """Bounds the memory per device of training steps of an LSTM with many examples.

    The unit of memory is one value per unit, example and step. A gradient reads 2 for the states, 2
    for the states before each step, 4 for the arguments of the gate and 1 for the gradients of the
    outputs, and writes 4 for the gradients of the arguments, 13 in total. Compilers keep 8 (TPU
    v5e) to 11 (H100) of these at a time, so that more than 20 indicates an unneeded array.
    """
    examples = 1024
    memory = chunk(mesh, model, examples=examples).memory_analysis()
    tensor = 4 * TIME * examples * UNITS
    assert memory.peak_memory_in_bytes < 20 * tensor


def evaluation(mesh, model, seeds=None):
    """`Trainer.evaluate`."""
    trainer, state, _, _ = _run(mesh, model, seeds)
    return Trainer._sum_metric.lower(trainer, state, {}, _examples(mesh, 10_000)).compile()


def prediction(mesh, model):
    """`jaxrnn.training.predict`."""
    _, state, _, _ = _run(mesh, model, None)
    images, _ = _examples(mesh, 10_000)
    return _predict.lower(model, mesh, state.params, (images,)).compile()


def exported(mesh, model, platform):
    """The program that experiments/export.py writes for any batch size, compiled for one."""
    params = model.init(jax.random.key(0), jnp.zeros((1, TIME, FEATURES)))["params"]

    @jax.jit
    def classify(sequences):
        return jax.nn.softmax(training.apply(model, params, training.scale(sequences)))

    shape = jax.export.symbolic_shape(f"batch, {TIME}, {FEATURES}")
    program = jax.export.export(classify, platforms=("cpu", "cuda", "rocm", "tpu"))(
        jax.ShapeDtypeStruct(shape, jnp.uint8)
    )
    assert platform in program.platforms
    images, _ = _examples(mesh, EXAMPLES)
    return jax.jit(program.call).lower(images).compile()


def _each(names, make):
    return {name: make(getattr(lax, name)) for name in names.split()}


# Every primitive that is allowed in a gate, as a function of two tiles.
PRIMITIVES = {
    **_each("add sub mul div max min", lambda function: function),
    **_each(
        "neg abs sign square exp exp2 log tanh logistic rsqrt sin cos stop_gradient",
        lambda function: lambda x, y: function(x) + y,
    ),
    **_each("eq ne lt le gt ge", lambda function: lambda x, y: lax.select(function(x, y), x, y)),
    "integer_pow": lambda x, y: lax.integer_pow(x, 3) + lax.integer_pow(y, -2),
    "and": lambda x, y: lax.select((x > 0) & (y > 0), x, y),
    "or": lambda x, y: lax.select((x > 0) | (y > 0), x, y),
    "select_n": lambda x, y: lax.select_n(x > 0, x, y),
    "clamp": lambda x, y: lax.clamp(-1.0, x, 1.0) + y,
    "convert_element_type": lambda x, y: x * lax.convert_element_type(y > 0, x.dtype),
    "broadcast_in_dim": lambda x, y: x + lax.full_like(y, 2),
}
ADDED = {"add_any", "one_minus_square"}  # added by autodiff, the second since JAX 0.12


def check_primitives():
    """Checks that the gate of the cell contains all primitives that are allowed in a gate."""
    tile, cell = jnp.ones((1, 4)), cell_of_primitives()
    made = jax.make_jaxpr(
        lambda *z: cell.gate(None, cell.gate.named([*z], None), jaxrnn.RNNState(tile))
    )(tile, tile)
    found = {equation.primitive.name for equation in elementwise._equations(made.jaxpr)}
    assert found | ADDED == elementwise._ELEMENTWISE


def cell_of_primitives():
    """Returns a cell whose gate uses all `PRIMITIVES`."""

    def init(key, input_size, dtype=jnp.float32):
        kernels = jaxrnn.initializers.kernels(key, input_size, 4, 4, gates=2, dtype=dtype)
        return jaxrnn.RNNParams(*kernels, bias=jnp.zeros(8, dtype))

    def initial_state(params, batch_shape=()):
        return jaxrnn.RNNState(jnp.zeros((*batch_shape, 4), params.bias.dtype))

    def gate(params, z, state):
        made = [function(z.a, z.b + state.hidden) for function in PRIMITIVES.values()]
        return jaxrnn.RNNState(sum(made[1:], made[0]))

    return jaxrnn.gated(gate, "a b", init, initial_state)
