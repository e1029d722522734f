"""Which devices take part in a collective: equal groups, said in a few numbers whatever their size.

Devices are numbered as in `Topology.devices()`. Groups come from the axes of a mesh over
consecutive devices, as in JAX, or from a list.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...hardware import Topology

Ints = NDArray[np.int64]
Axis = tuple[int, int]

# Groups with up to so many devices are looked at one by one.
SMALL = 1 << 13


@dataclass(frozen=True)
class Groups:
    """Groups of equal size, all running the same collective at the same time.

    Make one with `whole`, `along` or `listed`.
    """

    members: tuple[Axis, ...]
    """Extent and stride (in devices) of each axis that counts the members, outermost first."""

    batch: tuple[Axis, ...] = ()
    """Extent and stride of each axis that counts the groups, outermost first."""

    start: int = 0
    """Device of the first member of the first group."""

    table: tuple[tuple[int, ...], ...] | None = None
    """The devices of each group, where no strides describe them."""

    @property
    def size(self) -> int:
        """Members of one group (a count)."""
        return math.prod(extent for extent, _ in self.members)

    @property
    def count(self) -> int:
        """Groups (a count)."""
        return math.prod(extent for extent, _ in self.batch)

    @property
    def num_devices(self) -> int:
        """Devices in all groups (a count)."""
        return self.size * self.count

    @property
    def extent(self) -> tuple[int, int]:
        """The first device and the last."""
        if self.table is not None:
            return int(self._listed.min()), int(self._listed.max())
        span = sum((extent - 1) * stride for extent, stride in self.members + self.batch)
        return self.start, self.start + span

    @cached_property
    def _listed(self) -> Ints:
        return np.asarray(self.table, np.int64)

    def devices(self, group: Ints, member: Ints) -> Ints:
        """The devices of these members of these groups; the two arrays broadcast."""
        if self.table is not None:
            return self._listed[group, member]
        return self.start + _offset(self.batch, group) + _offset(self.members, member)

    def all_devices(self) -> Ints:
        """The devices, one row for each group. Takes memory for each."""
        return self.devices(np.arange(self.count)[:, None], np.arange(self.size)[None, :])

    def within(self, first: int, last: int) -> tuple[Ints, Ints]:
        """Group and member of each participating device in [first, last)."""
        if self.table is not None:
            group, member = np.nonzero((self._listed >= first) & (self._listed < last))
            return group, member
        axes = [*((axis, True) for axis in self.members), *((axis, False) for axis in self.batch)]
        rest = np.arange(first, last) - self.start
        digits: dict[int, Ints] = {}
        inside = rest >= 0
        for index in sorted(range(len(axes)), key=lambda i: -axes[i][0][1]):
            extent, stride = axes[index][0]
            if extent == 1:
                digits[index] = np.zeros_like(rest)
                continue
            digits[index], rest = np.divmod(rest, stride)
            inside &= digits[index] < extent
        inside &= rest == 0
        group, member = np.zeros_like(rest), np.zeros_like(rest)
        for index, ((extent, _), is_member) in enumerate(axes):
            if is_member:
                member = member * extent + digits[index]
            else:
                group = group * extent + digits[index]
        return group[inside], member[inside]

    def block(self, span: int) -> int:
        """The largest number of consecutive members, dividing the size, such that cutting every
        group into runs of so many leaves each run inside one of the aligned spans of `span`
        devices."""
        if self.table is not None or self.num_devices <= SMALL:
            return _common_run(self.all_devices() // span)
        block = 1
        for index in reversed(range(len(self.members))):
            extent, stride = self.members[index]
            others = [s for e, s in self.members + self.batch if e > 1 and s > stride]
            if span % stride or self.start % stride or any(s % stride for s in others):
                return block
            unit = math.gcd(extent, span // stride, self.start // stride)
            unit = math.gcd(unit, *(s // stride for s in others))
            block *= unit
            if unit < extent:
                return block
        return block

    def heads(self, block: int) -> "Groups":
        """Groups of the first member of every block of `block` consecutive ones."""
        outer, _ = self.split(block)
        if outer.table is not None:
            return listed(self.all_devices()[:, ::block].tolist())
        return replace(outer, batch=self.batch)

    def split(self, block: int) -> tuple["Groups", "Groups"]:
        """Groups across the blocks of `block` consecutive members (the same place in each), and
        groups within them. `block` divides the size."""
        if self.table is not None:
            rows = self._listed.reshape(self.count, -1, block)
            across = rows.transpose(0, 2, 1).reshape(-1, self.size // block)
            return listed(across.tolist()), listed(rows.reshape(-1, block).tolist())
        outer_axes: list[Axis] = []
        inner_axes: list[Axis] = []
        rest = block
        for extent, stride in reversed(self.members):
            inside = min(extent, rest)
            if extent % inside or rest % inside:
                return listed(self.all_devices().tolist()).split(block)
            rest //= inside
            inner_axes.insert(0, (inside, stride))
            outer_axes.insert(0, (extent // inside, stride * inside))
        outer = replace(self, members=tuple(outer_axes), batch=self.batch + tuple(inner_axes))
        return outer, replace(self, members=tuple(inner_axes), batch=self.batch + tuple(outer_axes))


def _offset(axes: tuple[Axis, ...], index: Ints) -> Ints:
    total = np.zeros_like(index)
    for extent, stride in reversed(axes):
        index, digit = np.divmod(index, extent)
        total = total + digit * stride
    return total


def _common_run(spans: Ints) -> int:
    """Greatest common divisor of the lengths of runs of equal numbers in all rows."""
    size = spans.shape[1]
    edges = np.nonzero((spans[:, 1:] != spans[:, :-1]).any(axis=0))[0] + 1
    return math.gcd(size, *(int(edge) for edge in edges))


def whole(topology: Topology) -> Groups:
    """One group of all devices of a topology."""
    return Groups(members=((topology.num_devices, 1),))


def along(mesh_shape: Sequence[int], axes: Sequence[int], start: int = 0) -> Groups:
    """The groups of a collective along some axes of a mesh.

    **Arguments:**

    - `mesh_shape`: extents of the mesh, whose devices are `start`, `start + 1`, ... in row-major
      order.
    - `axes`: which of them the collective runs along. Members are in row-major order of these.
    - `start`: the mesh's first device.

    **Raises:** `ValueError` for an axis that the mesh does not have or that is named twice.

    >>> along((2, 3, 2), (0, 2)).all_devices().tolist()
    [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    """
    if len(set(axes)) < len(axes) or not set(axes) <= set(range(len(mesh_shape))):
        raise ValueError(
            f"axes {tuple(axes)} must be different axes of a mesh of {len(mesh_shape)} axes, "
            f"0 to {len(mesh_shape) - 1}"
        )
    if any(extent < 1 for extent in mesh_shape):
        raise ValueError(f"the mesh {tuple(mesh_shape)} must have positive extents")
    strides = [math.prod(mesh_shape[axis + 1 :]) for axis in range(len(mesh_shape))]
    chosen = [(mesh_shape[axis], strides[axis]) for axis in axes]
    others = [(n, strides[axis]) for axis, n in enumerate(mesh_shape) if axis not in axes]
    return Groups(tuple(_merged(chosen)), tuple(_merged(others)), start)


def _merged(axes: list[Axis]) -> list[Axis]:
    """The same numbers in fewer axes: (2, 4), (4, 1) is (8, 1)."""
    merged: list[Axis] = []
    for extent, stride in axes:
        if extent == 1:
            continue
        if merged and merged[-1][1] == extent * stride:
            merged[-1] = (merged[-1][0] * extent, stride)
        else:
            merged.append((extent, stride))
    return merged


def listed(groups: Sequence[Sequence[int]]) -> Groups:
    """Groups given device by device.

    **Raises:** `ValueError` if there is none, if their sizes differ, or if a device is in them
    twice.
    """
    sizes = sorted({len(group) for group in groups})
    if len(sizes) != 1 or sizes == [0]:
        raise ValueError(
            f"groups must have the same number of members, at least one; got sizes {sizes}. "
            "Run a collective for each size"
        )
    table = np.asarray(groups, np.int64)
    devices, counts = np.unique(table, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"device {devices[counts > 1][0]} is in the groups {counts.max()} times; a device may "
            "be in one group, once"
        )
    table_tuple = tuple(tuple(int(device) for device in group) for group in table)
    return Groups(((sizes[0], 1),), ((len(groups), 1),), table=table_tuple)


def check_devices(groups: Groups, topology: Topology) -> None:
    """Raises `ValueError` if a group has a device that the topology has not."""
    first, last = groups.extent
    if first < 0 or last >= topology.num_devices:
        raise ValueError(
            f"{groups.count} group(s) of {groups.size} reach from device {first} to {last}, but "
            f"{topology.name} has devices 0 to {topology.num_devices - 1}; use smaller groups or a "
            "larger topology"
        )
