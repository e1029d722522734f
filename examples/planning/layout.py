"""How a model lies on devices: a mesh, and the parts of arrays that each axis of it divides."""

import math
from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("replica", "fsdp", "expert", "sequence", "tensor")
"""Outermost first: neighbours along "tensor" are cores of one chip."""

BATCH = ("replica", "fsdp", "expert")
"""What divides the sequences of a batch."""

TOKENS = ("sequence", "tensor")
"""What divides a sequence between layers (inside of them "tensor" divides heads and widths)."""

HEADS = ("tensor", "sequence")
"""What divides heads: whole sequences of some heads, as in DeepSpeed-Ulysses."""

SHARDED = ("expert", "fsdp", "sequence")
"""What divides a dense matrix's rows beside its columns (ZeRO stage 3)."""

EXPERTS = ("expert", "tensor")
"""What divides experts where they are many."""


@dataclass(frozen=True)
class Layout:
    """Devices along each axis, and how many parts a batch is taken in."""

    replica: int = 1
    fsdp: int = 1
    tensor: int = 1
    expert: int = 1
    sequence: int = 1
    microbatches: int = 1

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return math.prod(size for _, size in self.sizes)

    @property
    def sizes(self) -> tuple[tuple[str, int], ...]:
        """(axis, size)."""
        return tuple((axis, getattr(self, axis)) for axis in AXES)

    @property
    def mesh(self) -> AbstractMesh:
        """The mesh, of no devices in particular. Axes of size 1 are there, too."""
        names, sizes = zip(*self.sizes)
        return AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * len(names))

    @property
    def batch(self) -> int:
        """Parts that a batch is in."""
        return self.replica * self.fsdp * self.expert

    def __str__(self) -> str:
        axes = " x ".join(f"{axis} {size}" for axis, size in self.sizes if size > 1)
        return axes or "one device"

    def sharding(self, *spec: object) -> NamedSharding:
        """Where an array lies: for each dimension an axis, several, or None."""
        return NamedSharding(self.mesh, P(*spec))

    def place(self, x: jax.Array, *spec: object) -> jax.Array:
        """`x`, lying so from here on."""
        return jax.lax.with_sharding_constraint(x, self.sharding(*spec))

    def shape(self, shape: tuple[int, ...], dtype: object, *spec: object) -> jax.ShapeDtypeStruct:
        """The shape of an argument that lies so.

        **Raises:** `ValueError` where the axes do not divide the dimensions.
        """
        for size, axes in zip(shape, spec):
            names = (axes,) if isinstance(axes, str) else axes or ()
            sizes = {str(axis): getattr(self, str(axis)) for axis in names}
            parts = math.prod(sizes.values())
            if size % parts:
                divided = " x ".join(f"{axis} {n}" for axis, n in sizes.items() if n > 1)
                raise ValueError(f"{divided} does not divide {size}")
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.sharding(*spec))
