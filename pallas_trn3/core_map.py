"""`pl.kernel` and `core_map` on one NeuronCore: the program of a mesh of cores as a `pallas_call`.

A mesh of cores is a grid with names; its arrays stay whole in HBM, and the kernel moves them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax._src import core as jax_core
from jax._src.pallas import core as pallas_core


def as_pallas_call(
    avals: Sequence[Any], *, meshes: Sequence[Any], jaxprs: Sequence[Any], out_avals: Sequence[Any],
    input_output_aliases: Mapping[int, int], compiler_params: Any, name: Any, debug: bool,
    external_meshes: Any = (), **_: Any,
) -> dict[str, Any]:  # fmt: skip
    """The parameters of a `pallas_call` equation that does the same.

    **Raises:** `NotImplementedError` for programs of several meshes, which run at the same time.
    """
    if len(jaxprs) != 1 or external_meshes:
        raise NotImplementedError(
            f"a kernel of {len(jaxprs)} programs on several meshes; a NeuronCore runs one: call "
            "pl.kernel with one mesh"
        )
    (jaxpr,), (mesh,) = jaxprs, meshes
    arrays = len(avals) + len(out_avals)
    refs = [v.aval for v in jaxpr.invars]
    spec = pallas_core.GridSpec(
        grid=tuple(mesh.shape.items()),
        in_specs=tuple(_whole(aval, mesh) for aval in avals),
        out_specs=tuple(_whole(aval, mesh) for aval in out_avals),
        scratch_shapes=tuple(_memory(ref) for ref in refs[arrays:]),
    )
    shapes = [getattr(ref, "inner_aval", ref) for ref in refs[:arrays]]
    _, mapping = pallas_core.get_grid_mapping(
        spec,
        shapes[: len(avals)],
        jax.tree.structure(tuple(avals)),
        [f"arg{k}" for k in range(len(avals))],
        shapes[len(avals) :],
        jax.tree.structure(tuple(out_avals)),
        [f"out{k}" for k in range(len(out_avals))],
        debug=debug,
    )
    return {
        "jaxpr": jaxpr,
        "grid_mapping": mapping,
        "input_output_aliases": tuple(input_output_aliases.items()),
        "compiler_params": compiler_params,
        "name": name,
    }


def _whole(aval: Any, mesh: Any) -> Any:
    """An array in the memory that its type names, else in the mesh's."""
    space = getattr(aval, "memory_space", None)
    own = isinstance(aval, jax_core.ShapedArray) and not isinstance(space, jax_core.MemorySpace)
    return pallas_core.BlockSpec(memory_space=space if own else mesh.default_memory_space)


def _memory(ref: Any) -> Any:
    return pallas_core.MemoryRef(ref.inner_aval, ref.memory_space)
