"""Small instances of every cell of the library, for tests that all cells must pass."""

import jax

import jaxrnn
from jaxrnn.cells.lstm import VARIANTS

I, H, P = 3, 4, 2  # noqa: E741

CELLS = {
    "rnn": jaxrnn.rnn(H),
    "rnn-relu": jaxrnn.rnn(H, activation=jax.nn.relu),
    "rnn-sigmoid": jaxrnn.rnn(H, activation=jax.nn.sigmoid),
    "indrnn": jaxrnn.indrnn(H),
    "lstm": jaxrnn.lstm(H),
    "lstm-peephole": jaxrnn.lstm(H, peephole=True),
    "lstm-projection": jaxrnn.lstm(H, projection_size=P),
    "lstm-clip": jaxrnn.lstm(H, cell_clip=0.3),
    "lstm-softsign": jaxrnn.lstm(H, activation=jax.nn.soft_sign),
    "lstm-everything": jaxrnn.lstm(H, peephole=True, projection_size=P, cell_clip=0.5),
    **{f"odyssey-{name}": jaxrnn.odyssey(H, name) for name in VARIANTS},
    "lstm-layer-norm": jaxrnn.layer_norm_lstm(H),
    "janet": jaxrnn.janet(H),
    "gru": jaxrnn.gru(H),
    "gru-before": jaxrnn.gru(H, reset_after=False),
    "mgu": jaxrnn.mgu(H),
    "min-gru": jaxrnn.min_gru(H),
    "min-lstm": jaxrnn.min_lstm(H),
    "lru": jaxrnn.lru(H),
    "lru-pairs": jaxrnn.lru(H, state_size=2),
    "s5": jaxrnn.s5(H),
    "s5-square": jaxrnn.s5(I, state_size=3),
    "s5-stride": jaxrnn.s5(H, stride=I),
    "s6": jaxrnn.s6(H, state_size=2, rank=3),
    "rg-lru": jaxrnn.rg_lru(H, heads=2),
    "slstm": jaxrnn.slstm(H),
    "slstm-heads": jaxrnn.slstm(H, heads=2),
    "lem": jaxrnn.lem(H, step_size=0.7),
    "cornn": jaxrnn.cornn(H),
    "unicornn": jaxrnn.unicornn(H),
}
