"""The modules that importing the library loads, in one process."""

import subprocess
import sys

PROGRAM = """
import sys
import jax, jax.numpy, jaxtyping
before = set(sys.modules)
import jaxrnn
print(*sorted({name for name in sys.modules if name not in before}))
import jaxrnn.training.data, jaxrnn.training.report
print(*sorted(sys.modules))
"""
HEAVY = {"flax", "matplotlib", "optax", "orbax", "rich", "sklearn", "tensorflow"}
HEAVY |= {"onnx", "scipy.ndimage", "tensorflow_datasets", "PIL", "pyarrow"}


def test_importing_loads_no_more_than_is_used():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    library, training = (line.split() for line in done.stdout.splitlines())
    assert not HEAVY & set(library)
    # All other new modules belong to JAX; currently there are none.
    others = [name for name in library if not name.startswith(("jaxrnn", "jax."))]
    assert len(others) < 20, others
    # Data and pictures import their libraries where they are used; training needs Flax and optax.
    assert not (HEAVY - {"flax", "optax", "orbax", "rich"}) & set(training)
