"""Made the arrays beside it: what other libraries compute with random weights, and its gradients.

    pip install tensorflow==2.21.* tf_keras
    TF_USE_LEGACY_KERAS=1 python tests/golden/make.py tf1
    pip install torch==2.13.0 && python tests/golden/make.py torch
    pip install keras==3.* jax && KERAS_BACKEND=jax python tests/golden/make.py keras
    pip install equinox dm-haiku && python tests/golden/make.py equinox
    python tests/golden/make.py haiku
    pip install torch==2.13.0 onnx onnxscript && python tests/golden/make.py torch_onnx
    pip install tensorflow==2.15.* tf2onnx==1.17.* 'onnx<1.17' 'numpy<2'
    python tests/golden/make.py keras_onnx

Those of ONNX are models that the libraries' exporters wrote of the same weights. Each other file
holds `inputs`, `weights/…` under the library's own names, `outputs`, the last `states/…`,
and of the loss sum(outputs · cos(k)) + sum(states · cos(k)), k = 0, 1, 2 … along each flattened
array, the gradients `d_inputs` and `d_weights/…`.
"""

import sys
from pathlib import Path

import numpy as np

B, T, I, H, P = 2, 5, 3, 4, 2  # noqa: E741
HERE = Path(__file__).parent


def normal(shape, seed):
    """Random float32."""
    return (0.7 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def cosines(shape):
    """The factors of the loss."""
    return np.cos(np.arange(np.prod(shape))).reshape(shape).astype(np.float32)


def save(name, weights, outputs, states, d_inputs, d_weights):
    """One file."""
    arrays = {"inputs": normal((B, T, I), 0), "outputs": outputs, "d_inputs": d_inputs}
    arrays |= {f"weights/{key}": value for key, value in weights.items()}
    arrays |= {f"d_weights/{key}": value for key, value in d_weights.items()}
    arrays |= {f"states/{key}": value for key, value in states.items()}
    np.savez(HERE / f"{name}.npz", **{key: np.asarray(value) for key, value in arrays.items()})


def tf1():
    """TensorFlow 1's cells under dynamic_rnn."""
    import tensorflow.compat.v1 as tf

    tf.disable_v2_behavior()
    cell = tf.nn.rnn_cell
    both = ["cell", "hidden"]
    cells = {
        "rnn": (cell.BasicRNNCell, {}, ["hidden"]),
        "rnn_relu": (cell.BasicRNNCell, {"activation": tf.nn.relu}, ["hidden"]),
        "rnn_sigmoid": (cell.BasicRNNCell, {"activation": tf.nn.sigmoid}, ["hidden"]),
        "basic_lstm": (cell.BasicLSTMCell, {"forget_bias": 1.0}, both),
        "basic_lstm_softsign": (cell.BasicLSTMCell, {"activation": tf.nn.softsign}, both),
        "lstm": (
            cell.LSTMCell,
            {"use_peepholes": True, "num_proj": P, "forget_bias": 0.5},
            both,
        ),
        "lstm_peephole": (cell.LSTMCell, {"use_peepholes": True}, both),
        "lstm_projection": (cell.LSTMCell, {"num_proj": P}, both),
        "lstm_clip": (cell.LSTMCell, {"cell_clip": 0.3}, both),
        "lstm_everything": (
            cell.LSTMCell,
            {"use_peepholes": True, "num_proj": P, "cell_clip": 0.5},
            both,
        ),
        "gru": (cell.GRUCell, {}, ["hidden"]),
    }
    for name, (make, options, fields) in cells.items():
        with tf.Graph().as_default(), tf.Session() as session:
            inputs = tf.constant(normal((B, T, I), 0))
            outputs, state = tf.nn.dynamic_rnn(make(H, **options), inputs, dtype=tf.float32)
            states = list(state) if len(fields) > 1 else [state]
            variables = tf.trainable_variables()
            for seed, variable in enumerate(variables, 1):
                session.run(tf.assign(variable, normal(variable.shape, seed)))
            shapes = [tuple(each.shape) for each in session.run([outputs, *states])]
            loss = sum(
                tf.reduce_sum(each * cosines(shape))
                for each, shape in zip([outputs, *states], shapes, strict=True)
            )
            gradients = tf.gradients(loss, [inputs, *variables])
            found, made, end, (d_inputs, *d_weights) = session.run(
                [variables, outputs, states, gradients]
            )
            names = ["/".join(v.name.split(":")[0].split("/")[2:]) for v in variables]
            save(
                f"tf1_{name}",
                dict(zip(names, found, strict=True)),
                made,
                dict(zip(fields, end, strict=True)),
                d_inputs,
                dict(zip(names, d_weights, strict=True)),
            )


def torch_modules():
    """torch.nn's modules: two layers, both directions; and a projection."""
    import torch

    modules = {
        "rnn": (torch.nn.RNN, {}, ["hidden"]),
        "rnn_relu": (torch.nn.RNN, {"nonlinearity": "relu"}, ["hidden"]),
        "lstm": (torch.nn.LSTM, {}, ["hidden", "cell"]),
        "lstm_projection": (torch.nn.LSTM, {"proj_size": P}, ["hidden", "cell"]),
        "gru": (torch.nn.GRU, {}, ["hidden"]),
    }
    for name, (make, options, fields) in modules.items():
        module = make(I, H, num_layers=2, bidirectional=True, batch_first=True, **options)
        weights = module.state_dict()
        module.load_state_dict(
            {
                key: torch.from_numpy(normal(value.shape, seed))
                for seed, (key, value) in enumerate(weights.items(), 1)
            }
        )
        yield name, module, fields


def torch():
    """What they compute."""
    import torch

    for name, module, fields in torch_modules():
        inputs = torch.from_numpy(normal((B, T, I), 0)).requires_grad_()
        outputs, state = module(inputs)
        states = state if len(fields) > 1 else (state,)
        loss = sum(
            (each * torch.from_numpy(cosines(each.shape))).sum() for each in (outputs, *states)
        )
        loss.backward()
        save(
            f"torch_{name}",
            {key: value.numpy() for key, value in module.state_dict().items()},
            outputs.detach(),
            {field: each.detach() for field, each in zip(fields, states, strict=True)},
            inputs.grad,
            {key: value.grad for key, value in module.named_parameters()},
        )


def over_time(name, weights, step, start, fields):
    """What a cell of a JAX library computes: `step(weights, state, x) -> state`, h the first."""
    import jax
    import jax.numpy as jnp

    def loss(weights, inputs):
        def body(state, x):
            state = step(weights, state, x)
            return state, jax.tree.leaves(state)[0]

        states, outputs = jax.lax.scan(body, start, jnp.swapaxes(inputs, 0, 1))
        outputs, states = jnp.swapaxes(outputs, 0, 1), jax.tree.leaves(states)
        total = sum(jnp.sum(each * cosines(each.shape)) for each in (outputs, *states))
        return total, (outputs, states)

    inputs = jnp.asarray(normal((B, T, I), 0))
    found = jax.value_and_grad(loss, (0, 1), has_aux=True)(weights, inputs)
    (_, (outputs, states)), (d_weights, d_inputs) = found
    states = dict(zip(fields, states, strict=True))
    flat = [
        {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
        for leaves, _ in map(jax.tree_util.tree_flatten_with_path, (weights, d_weights))
    ]
    save(name, flat[0], outputs, states, d_inputs, flat[1])


def equinox():
    """Equinox's cells."""
    import equinox as eqx
    import jax

    zero = np.zeros((B, H), np.float32)
    cells = {
        "lstm": (eqx.nn.LSTMCell, (zero, zero), ["hidden", "cell"]),
        "gru": (eqx.nn.GRUCell, zero, ["hidden"]),
    }
    for name, (make, start, fields) in cells.items():
        cell = make(I, H, key=jax.random.key(0))
        names = ["weight_ih", "weight_hh", "bias", *(["bias_n"] if name == "gru" else [])]
        weights = {each: normal(getattr(cell, each).shape, n) for n, each in enumerate(names, 1)}

        def step(weights, state, x, cell=cell, names=names):
            values = [weights[each] for each in names]
            cell = eqx.tree_at(lambda each: [getattr(each, name) for name in names], cell, values)
            return jax.vmap(cell)(x, state)

        over_time(f"equinox_{name}", weights, step, start, fields)


def haiku():
    """Haiku's cores; the VanillaRNN's activation is relu."""
    import haiku as hk
    import jax

    zero = np.zeros((B, H), np.float32)
    cores = {
        "rnn_relu": (hk.VanillaRNN, zero, ["hidden"]),
        "lstm": (hk.LSTM, hk.LSTMState(zero, zero), ["hidden", "cell"]),
        "gru": (hk.GRU, zero, ["hidden"]),
    }
    for name, (make, start, fields) in cores.items():
        core = hk.without_apply_rng(hk.transform(lambda x, state, make=make: make(H)(x, state)))
        shapes = jax.eval_shape(core.init, jax.random.key(0), normal((B, I), 0), start)
        leaves, structure = jax.tree.flatten(shapes)
        values = [normal(leaf.shape, seed) for seed, leaf in enumerate(leaves, 1)]

        def step(weights, state, x, core=core):
            return core.apply(weights, x, state)[1]

        over_time(f"haiku_{name}", structure.unflatten(values), step, start, fields)


def torch_onnx():
    """PyTorch's two exporters, the older one and the one through torch.export."""
    import onnx
    import torch

    names = {"rnn_relu": (False,), "lstm": (False, True), "gru": (False, True)}
    for name, module, _ in torch_modules():
        for dynamo in names.get(name, ()):
            axes = {0: "batch", 1: "time"}
            given = {"dynamic_shapes": (axes,)} if dynamo else {"dynamic_axes": {"inputs": axes}}
            path = HERE / f"torch_{name}{'_dynamo' * dynamo}.onnx"
            torch.onnx.export(
                module.eval(),
                (torch.from_numpy(normal((B, T, I), 0)),),
                path,
                input_names=["inputs"],
                output_names=["outputs"],
                external_data=False,
                dynamo=dynamo,
                **given,
            )
            model = onnx.load(path)
            for each in (model, model.graph, *model.graph.node, *model.graph.input):
                del each.metadata_props[:]
                each.doc_string = ""
            del model.graph.value_info[:]
            onnx.save(model, path)


def keras_onnx():
    """Keras' layers as tf2onnx writes them; a SimpleRNN would be a loop."""
    import tensorflow as tf
    import tf2onnx

    layer = tf.keras.layers
    options = {"return_sequences": True}
    models = {
        "lstm": [layer.LSTM(H, **options)],
        "gru": [layer.GRU(H, **options)],
        "lstm_bidirectional": [layer.Bidirectional(layer.LSTM(H, **options)) for _ in range(2)],
    }
    for name, layers in models.items():
        model = tf.keras.Sequential([tf.keras.Input((None, I), name="inputs"), *layers])
        weights = [normal(value.shape, seed) for seed, value in enumerate(model.get_weights(), 1)]
        model.set_weights(weights)
        path = HERE / f"keras_{name}.onnx"
        tf2onnx.convert.from_keras(model, opset=17, output_path=path)


def keras():
    """Keras 3's layers on the JAX backend."""
    import jax
    import jax.numpy as jnp
    import keras

    layers = {
        "rnn": (keras.layers.SimpleRNN, {}, ["hidden"]),
        "rnn_relu": (keras.layers.SimpleRNN, {"activation": "relu"}, ["hidden"]),
        "rnn_sigmoid": (keras.layers.SimpleRNN, {"activation": "sigmoid"}, ["hidden"]),
        "lstm": (keras.layers.LSTM, {}, ["hidden", "cell"]),
        "lstm_softsign": (keras.layers.LSTM, {"activation": "softsign"}, ["hidden", "cell"]),
        "gru": (keras.layers.GRU, {"reset_after": True}, ["hidden"]),
        "gru_before": (keras.layers.GRU, {"reset_after": False}, ["hidden"]),
    }
    for name, (make, options, fields) in layers.items():
        layer = make(H, return_sequences=True, return_state=True, **options)
        layer.build((B, T, I))
        weights = [normal(value.shape, seed) for seed, value in enumerate(layer.get_weights(), 1)]
        rest = [variable.value for variable in layer.non_trainable_variables]

        def loss(weights, inputs, layer=layer, rest=rest):
            (outputs, *states), _ = layer.stateless_call(weights, rest, inputs)
            total = sum(jnp.sum(each * cosines(each.shape)) for each in (outputs, *states))
            return total, (outputs, states)

        inputs = jnp.asarray(normal((B, T, I), 0))
        found = jax.value_and_grad(loss, (0, 1), has_aux=True)(weights, inputs)
        (_, (outputs, states)), (d_weights, d_inputs) = found
        names = ["kernel", "recurrent_kernel", "bias"]
        save(
            f"keras_{name}",
            dict(zip(names, weights, strict=True)),
            outputs,
            dict(zip(fields, states, strict=True)),
            d_inputs,
            dict(zip(names, d_weights, strict=True)),
        )


if __name__ == "__main__":
    made = {"tf1": tf1, "torch": torch, "keras": keras}
    made |= {"equinox": equinox, "haiku": haiku}
    made |= {"torch_onnx": torch_onnx, "keras_onnx": keras_onnx}
    made[sys.argv[1]]()
