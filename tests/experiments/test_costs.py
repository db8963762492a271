"""What is counted in a compiled program; compiling for a TPU is left to the script."""

import tpu_costs


def test_collectives_are_counted_with_the_bytes_of_their_results():
    program = """
  %psum.9 = f32[81675]{0:T(1024)S(1)} all-reduce(%concatenate.38), channel_id=1, to_apply=%add
  %start = (f32[2,3]{1,0}, bf16[4]{0}) all-reduce-start(%a, %b), channel_id=2
  %done = (f32[2,3]{1,0}, bf16[4]{0}) all-reduce-done(%start)
  %fusion = f32[9]{0} fusion(%all-reduce.1), kind=kLoop
"""
    assert tpu_costs.collectives(program) == ("2 all-reduce", 4 * 81675 + 24 + 8)
    assert tpu_costs.collectives("%add = f32[] add(%a, %b)") == ("none", 0)
