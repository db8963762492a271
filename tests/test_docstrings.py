"""The examples in the docstrings of public functions and classes."""

import doctest

import jax
import pytest

import jaxrnn
import jaxrnn.convert
import jaxrnn.initializers
import jaxrnn.linen
import jaxrnn.nnx
import jaxrnn.renet
import jaxrnn.residual

PUBLIC = [
    *[getattr(jaxrnn, name) for name in jaxrnn.__all__],
    *[getattr(jaxrnn.convert, name) for name in jaxrnn.convert.__all__],
    *[getattr(jaxrnn.linen, name) for name in jaxrnn.linen.__all__],
    *[jaxrnn.nnx.RNN, jaxrnn.renet.ReNet, jaxrnn.residual.ResidualClassifier],
    jaxrnn.initializers.kernels,
]
FINDER = doctest.DocTestFinder(recurse=False)
EXAMPLES = [
    test
    for each in PUBLIC
    for test in FINDER.find(each, f"{each.__module__}.{each.__name__}", module=False)
    if test.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name)
def test_an_example_runs(example):
    report = []
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        failed, _ = doctest.DocTestRunner().run(example, out=report.append)
    assert not failed, "".join(report)


def test_the_main_entry_points_have_examples():
    names = {test.name.removeprefix("jaxrnn.") for test in EXAMPLES}
    assert names >= {"cell.Cell", "cell.gated", "cell.linear", "cells.lstm.lstm", "unroll.unroll"}
    assert names >= {"linen.RNN", "linen.Stack", "linen.Classifier", "nnx.RNN", "renet.ReNet"}
    assert names >= {"convert.torch.from_torch", "regularize.Regularizer"}
