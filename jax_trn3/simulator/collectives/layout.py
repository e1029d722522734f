"""How the ranks of a group lie on chips, and the cycles that rings take through these."""

import numpy as np

from .algorithms import Shape
from .groups import SMALL, Groups, Ints
from .network import Network


def shape_of(groups: Groups, network: Network) -> Shape:
    """How the ranks of every group lie."""
    per_chip = groups.block(network.topology.devices_per_chip)
    chips = groups.size // per_chip
    plane = _plane(groups, network, chips, per_chip)
    return Shape(chips, per_chip, _cycles(network, chips, plane), _gray(network) if plane else 0)


def _plane(groups: Groups, network: Network, chips: int, per_chip: int) -> int:
    """Chips in a plane of a torus of whose planes every group is made, in order; 0 if none."""
    rows, columns = ([1, 1, *network.topology.chip_shape])[-2:]
    plane = rows * columns
    if not network.is_torus or rows < 3 or columns < 3 or chips % plane:
        return 0
    if groups.num_devices > SMALL:
        return 0
    first = groups.all_devices()[:, ::per_chip] // network.topology.devices_per_chip
    ordered = (first == first[:, :1] + np.arange(chips)).all()
    return plane if ordered and (first[:, 0] % plane == 0).all() else 0


def _gray(network: Network) -> int:
    """Bits of a chip's number whose upper neighbour belongs to the same coordinate."""
    mask, low = 0, 0
    for extent in reversed(network.topology.chip_shape):
        bits = (extent - 1).bit_length()
        mask |= ((1 << max(bits - 1, 0)) - 1) << low
        low += bits
    return mask


def _cycles(network: Network, chips: int, plane: int) -> Ints:
    """One order of the chips for each channel of a ring."""
    order = np.arange(chips)
    if not network.is_torus or chips < 3:
        return order[None, :]
    if not plane:
        return np.stack([order, order[::-1]])
    rows, columns = network.topology.chip_shape[-2:]
    if rows != columns:
        cycles = [_snake(rows, columns)]
    else:
        across = _staircase(rows)
        down = across % columns * columns + across // columns
        # Planes are left at either end of a cycle: the two cycles leave at different chips.
        cycles = [across, np.roll(down, plane // 2)]
    through = [_through_planes(cycle, chips // plane) for cycle in cycles]
    return np.stack([*through, *(cycle[::-1] for cycle in through)])


def _staircase(side: int) -> Ints:
    """A cycle through all of a square torus that leaves another one, its mirror image, the links
    it does not use: along the row, down at the end of the anti-diagonal (intranode-collective-
    comm.rst: two non-overlapping Hamiltonian cycles)."""
    row = column = 0
    cells = []
    for _ in range(side * side):
        cells.append(row * side + column)
        if (row + column) % side == side - 1:
            row = (row + 1) % side
        else:
            column = (column + 1) % side
    return np.array(cells)


def _snake(rows: int, columns: int) -> Ints:
    """Row after row, every other one backwards."""
    grid = np.arange(rows * columns).reshape(rows, columns)
    grid[1::2] = grid[1::2, ::-1]
    return grid.ravel()


def _through_planes(cycle: Ints, planes: int) -> Ints:
    """The cycle through plane after plane, every other one backwards."""
    ways = [cycle if index % 2 == 0 else cycle[::-1] for index in range(planes)]
    return np.concatenate([index * len(cycle) + way for index, way in enumerate(ways)])
