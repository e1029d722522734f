"""The table as a whole: complete, documented, with costs that grow, on every core that has it."""

import inspect
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from isa_cases import CORES, problems

from jax_trn3.isa import TABLE, Access, Register, execute, state_name
from jax_trn3.isa.spec import STATES, SUPPLIED, instruction, writes

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.append(str(TOOLS))

import isa_page  # noqa: E402
from isa_samples import SAMPLES, SIZES, sample  # noqa: E402

# nki.isa of NKI 0.6.0 (nki/api/nki.isa.rst), typed from its documentation. What asks for a version
# at compile time (get_nc_version, get_nc_sub_version) is no instruction.
NKI = [
    "nc_matmul", "nc_matmul_mx", "nc_transpose", "activation", "activation_reduce", "activate2",
    "tensor_tensor", "tensor_scalar", "scalar_tensor_tensor", "tensor_scalar_reduce",
    "tensor_scalar_cumulative", "tensor_tensor_scan", "tensor_reduce", "tensor_partition_reduce",
    "tensor_copy", "tensor_copy_predicated", "select_reduce", "range_select", "exponential",
    "reciprocal", "quantize_mx", "memset", "dropout", "bn_stats", "bn_aggr", "max8",
    "nc_find_index8", "nc_match_replace8", "nc_stream_shuffle", "iota", "affine_select",
    "local_gather", "nc_n_gather", "nonzero_with_count", "sequence_bounds", "topk", "rng", "rand2",
    "rand_set_state", "rand_get_state", "set_rng_seed", "dma_copy", "dma_transpose", "dma_compute",
    "sendrecv", "core_barrier", "register_alloc", "register_load", "register_move",
    "register_store",
]  # fmt: skip
OURS = ["nop", "collective"]  # compilers put it in, profiles list it; NKI has its own module
SEQUENCER = {"core_barrier", "nop", *(name for name in NKI if name.startswith("register_"))}
FIXED = SEQUENCER | {"rand_set_state", "rand_get_state", "set_rng_seed"}
"""Instructions without a free size that could grow."""


def test_it_has_nkis_instructions_and_nothing_else():
    assert sorted(TABLE) == sorted([*NKI, *OURS])
    assert len(NKI) == 50
    assert set(SAMPLES) == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_line_says_what_it_is(name):
    spec = TABLE[name]
    assert spec.__doc__
    assert len(spec.__doc__.split()) > 3
    assert ".rst" in spec.source or "__init__.py" in spec.source
    assert spec.engines
    assert 2 <= spec.since <= 4
    for rule in spec.rules:
        assert inspect.getdoc(rule), f"a rule of {name} has no docstring"
    for operand in spec.operands:
        assert operand.memories
        assert operand.dtypes
        assert not (operand.role != "read" and operand.scalar)
    assert len({o.name for o in spec.operands}) == len(spec.operands)
    assert not {o.name for o in spec.operands} & set(spec.params)
    assert spec.state in (None, *STATES)


@pytest.mark.parametrize("core", CORES, ids=lambda core: core.name)
@pytest.mark.parametrize("name", TABLE)
def test_costs_are_positive_and_grow(name, core):
    if core.generation < TABLE[name].since:
        assert f"NeuronCore-v{TABLE[name].since} is the first" in problems(sample(name), core)
        return
    costs = []
    for size in SIZES:
        made = sample(name, size)
        assert problems(made, core) == ""
        work = made.spec.cost(made, core)
        costs.append(max(work.dma.engine_ps) if work.dma else work.cycles)
    assert costs[0] > 0
    assert costs == sorted(costs)
    assert (costs[-1] > costs[0]) == (name not in FIXED)


@pytest.mark.parametrize("name", [name for name in TABLE if name != "collective"])
def test_the_meaning_fills_what_is_written(name):
    made = sample(name, SIZES[0])
    arrays = {n: zeros(access) for n, access in made.operands}
    if made.spec.state:
        arrays[state_name(made)] = STATE[made.spec.state](made.engine)
    written = [o for o in made.spec.operands if o.role != "read"]
    previous = next((zeros(made[o.name]) for o in written if made.updates(o)), None)
    shapes = jax.eval_shape(lambda a, p: execute(made, a, p), arrays, previous)
    for operand in written:
        access = made.get(operand.name)
        if isinstance(access, Access):
            element = access.tile.element
            packed = (element.packed,) if element.packed > 1 else ()
            assert shapes[operand.name].shape == (*access.shape, *packed)
            assert shapes[operand.name].dtype == element.numpy


def zeros(access):
    element = access.tile.element
    packed = (element.packed,) if element.packed > 1 else ()
    return jnp.zeros((*access.shape, *packed), element.numpy)


STATE = {
    "accumulators": lambda engine: jnp.zeros(128),
    "prng": lambda engine: jnp.ones((128, 24 if engine == "vector" else 6), jnp.uint32),
    "registers": lambda engine: {"i": jnp.int32(7)},
}


def test_two_lines_cannot_have_one_name_and_state_must_be_named():
    decorate = instruction(writes("dst"), engines=("vector",), cost=TABLE["iota"].cost, source="x")

    def iota(*, out):
        """Another one."""

    with pytest.raises(ValueError, match="two instructions are called iota"):
        decorate(iota)

    def draws(*, state):
        """Without saying which."""

    with pytest.raises(
        ValueError, match="draws: a meaning takes `state` where the table names one"
    ):
        decorate(draws)
    assert "draws" not in TABLE


def test_what_is_supplied_is_no_parameter():
    for spec in TABLE.values():
        assert not set(spec.params) & set(SUPPLIED)
        with pytest.raises(TypeError, match="given twice or unknown"):
            spec(out=np.zeros(1))


def test_an_instruction_prints_as_what_it_is():
    made = TABLE["register_move"](dst=Register("i"), src=1)
    assert str(made).startswith("register_move() on sync from ")
    assert str(sample("dma_copy", 64)).count("float32") == 2


def test_the_page_is_current():
    page = isa_page.page()
    assert all(f"\n### {name}\n" in page for name in TABLE)
    assert isa_page.PAGE.read_text() == page, "run python tools/isa_page.py"
