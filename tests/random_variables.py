"""Random variables of a Flax module without running its `init`, which takes longer to compile
than most programs under test."""

import jax
import numpy as np


def random_variables(module, *inputs, **options):
    """Returns nonzero normal numbers in the shapes of `module.init(key, *inputs, **options)`."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs, **options)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.normal(0, 0.5, leaf.shape), leaf.dtype), shapes
    )
