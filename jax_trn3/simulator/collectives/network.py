"""The servers that transfers share: ports of chips, HBM stacks, DMA engines and CC-cores."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...hardware import Fabric, Tier, Topology
from .groups import Groups, Ints
from .schedule import Step

Memory = Literal["hbm", "sbuf"]
_PS_PER_S = 10**12
_PS_PER_NS = 1_000


@dataclass(frozen=True, eq=False)
class Load:
    """What one repetition of a step asks of the servers."""

    servers: Ints
    """Every server in use, ascending."""

    work: NDArray[np.float64]
    """Bytes for each of them (transfers to start, for a CC-core)."""

    duration_ps: Ints
    """Time each of them takes for it, ps."""

    transfer: Ints
    """Transfer of each use of a server."""

    used: Ints
    """Index in `servers` of each use."""

    latency_ps: Ints
    """Of each transfer, ps."""

    devices: tuple[Ints, Ints, Ints]
    """Source, destination and engine of each transfer."""


@dataclass(frozen=True, eq=False)
class Network:
    """The servers of a topology, numbered chip by chip: of each chip, two ports for each of
    `Topology.chip_axes`, then its HBM stacks, then a set of DMA engines and one of CC-cores for
    each device."""

    topology: Topology
    memory: Memory

    def __post_init__(self) -> None:
        axes = zip(self.topology.chip_axes, self.topology.chip_shape)
        missing = [axis for axis, extent in axes if extent > 1 and axis not in self.fabric.tiers]
        if missing:
            raise ValueError(
                f"{self.fabric.name} does not say how chips are joined along {missing[0]!r}, an "
                f"axis of {self.topology.name}; it knows {', '.join(self.fabric.tiers) or 'none'}. "
                "Add a Tier with dataclasses.replace"
            )

    @property
    def fabric(self) -> Fabric:
        """What joins the chips."""
        return self.topology.chip.fabric

    @cached_property
    def _tiers(self) -> tuple[Tier | None, ...]:
        return tuple(self.fabric.tiers.get(axis) for axis in self.topology.chip_axes)

    @cached_property
    def _ports(self) -> int:
        return 2 * len(self._tiers)

    @cached_property
    def _per_chip(self) -> int:
        return self._ports + self.topology.chip.hbm_stacks + 2 * self.topology.devices_per_chip

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """What the servers of a chip are called."""
        ports = [name for tier in self._tiers for name in [tier.name if tier else "unused"] * 2]
        devices = self.topology.devices_per_chip
        stacks = self.topology.chip.hbm_stacks
        return (*ports, *["HBM"] * stacks, *["DMA engines"] * devices, *["CC-cores"] * devices)

    @cached_property
    def _ps_per_work(self) -> NDArray[np.float64]:
        topology = self.topology
        ports = [tier.bandwidth_bytes_per_s if tier else 1 for tier in self._tiers for _ in "io"]
        hbm = [topology.chip.hbm_stack_bandwidth_bytes_per_s] * topology.chip.hbm_stacks
        dma = [topology.lnc * topology.chip.core.dma.practical_bytes_per_s]
        rates = np.array([*ports, *hbm, *dma * topology.devices_per_chip], np.float64)
        message = float(self.fabric.message_ns * _PS_PER_NS)
        return np.concatenate([_PS_PER_S / rates, np.full(topology.devices_per_chip, message)])

    @property
    def devices_per_domain(self) -> int:
        """Devices that NeuronLink joins: all, or those of one UltraServer of a cluster."""
        return self._span(sum(1 for tier in self._tiers if tier and tier.wiring == "network"))

    def _span(self, axes: int) -> int:
        """Devices that agree in the first `axes` coordinates."""
        return int(np.prod(self.topology.chip_shape[axes:])) * self.topology.devices_per_chip

    @property
    def is_torus(self) -> bool:
        """Whether rings join the chips (trn2), not switches (trn3)."""
        axes = zip(self._tiers, self.topology.chip_shape)
        return any(tier is not None and tier.wiring == "ring" for tier, extent in axes)

    @property
    def spans(self) -> tuple[int, ...]:
        """Devices within each value of the coordinates, from the outermost tier in, as far as it
        is worth cutting a collective there: not within the plane of a torus or a server."""
        cuts = []
        for index, (tier, extent) in enumerate(zip(self._tiers, self.topology.chip_shape)):
            last = index == len(self._tiers) - 1
            plane = tier is not None and tier.wiring == "ring" and index >= len(self._tiers) - 2
            if extent > 1 and not last and not plane:
                cuts.append(self._span(index + 1))
        return tuple(cuts)

    def kind_of(self, servers: Ints) -> list[str]:
        """What servers are called."""
        return [self.kinds[server % self._per_chip] for server in servers]

    def load(self, step: Step, groups: Groups, group: Ints) -> Load:
        """What one repetition of a step asks for, when these groups run it."""
        src = groups.devices(group[:, None], step.src[None, :]).ravel()
        dst = groups.devices(group[:, None], step.dst[None, :]).ravel()
        engine = src
        if step.engine is not None:
            engine = groups.devices(group[:, None], step.engine[None, :]).ravel()

        def each(values: Ints | int) -> NDArray[np.float64]:
            row = np.broadcast_to(np.asarray(values, np.float64), step.src.shape)
            return np.tile(row, len(group))

        copies = each(step.copies)
        return self.load_of(
            (src, dst, engine),
            each(step.size) * copies,
            copies,
            each(step.reads),
            each(step.updates),
            each(step.writes),
        )

    def load_of(
        self,
        devices: tuple[Ints, Ints, Ints],
        size: NDArray[np.float64],
        copies: NDArray[np.float64],
        reads: NDArray[np.float64],
        updates: NDArray[np.float64],
        writes: NDArray[np.float64],
    ) -> Load:
        """The load of transfers given one by one: source, destination and engine; bytes, of all
        copies together; the other arguments as in `Step`."""
        src, dst, engine = devices
        number = np.arange(len(src))
        uses, latency = self._route(src, dst)
        links = [(transfer, server, size[transfer]) for transfer, server in uses]
        links.append((number, self._dma(engine), size * (reads + updates * self.update_cost)))
        # A second copy of what another transfer reads is part of that transfer.
        links.append((number, self._cc(engine), copies * (reads > 0)))
        if self.memory == "hbm":
            links.append((number, self._stack(src), size * reads))
            links.append((number, self._stack(dst), size * (updates + writes)))
        transfer = np.concatenate([use[0] for use in links])
        server = np.concatenate([use[1] for use in links])
        work = np.concatenate([use[2] for use in links])
        servers, used = _numbered(server)
        total = np.bincount(used, work, len(servers)).astype(np.float64)
        duration = np.ceil(total * self._ps_per_work[servers % self._per_chip]).astype(np.int64)
        return Load(servers, total, duration, transfer, used, latency, devices)

    @property
    def update_cost(self) -> float:
        """Bytes that a DMA engine handles for each byte it adds to, beside those it adds. Through
        HBM the sum is read; in SBUF it costs what accumulation costs the engine."""
        if self.memory == "hbm":
            return 1.0
        return 1 / self.topology.chip.core.dma.accumulate_factor - 1

    def _locate(self, device: Ints) -> tuple[Ints, Ints]:
        chip, core = np.divmod(device, self.topology.devices_per_chip)
        return chip, core

    def _stack(self, device: Ints) -> Ints:
        chip, core = self._locate(device)
        stack = core * self.topology.lnc // self.topology.chip.cores_per_stack
        return chip * self._per_chip + self._ports + stack

    def _dma(self, device: Ints) -> Ints:
        chip, core = self._locate(device)
        return chip * self._per_chip + self._ports + self.topology.chip.hbm_stacks + core

    def _cc(self, device: Ints) -> Ints:
        return self._dma(device) + self.topology.devices_per_chip

    def _route(self, src: Ints, dst: Ints) -> tuple[list[tuple[Ints, Ints]], Ints]:
        """Uses of ports (transfer, server), and the latency of each transfer in ps.

        The coordinates are put right one by one, from the outermost in: by address, so that data
        and the semaphore after it go the same way (trn3-arch.rst).
        """
        fabric = self.fabric
        hop = fabric.hop_latency_ns if self.memory == "hbm" else fabric.sbuf_hop_latency_ns
        latency = np.full(len(src), hop * _PS_PER_NS, np.int64)
        uses: list[tuple[Ints, Ints]] = []
        here, there = self._locate(src)[0], self._locate(dst)[0]
        inner = int(np.prod(self.topology.chip_shape))
        for axis, (tier, extent) in enumerate(zip(self._tiers, self.topology.chip_shape)):
            inner //= extent
            if tier is None or extent == 1:
                continue
            port = 2 * axis
            delay = tier.latency_ns * _PS_PER_NS
            place, target = here // inner, there // inner
            if axis:
                place, target = place % extent, target % extent
            if tier.wiring == "ring":
                hops = self._around(place, target, extent, here, inner)
                for _ in range(extent // 2):
                    moving = np.nonzero(hops)[0]
                    if not len(moving):
                        break
                    sign = np.sign(hops[moving])
                    uses.append((moving, here[moving] * self._per_chip + port + (sign < 0)))
                    place = here[moving] // inner % extent
                    here = here.copy()
                    here[moving] += ((place + sign) % extent - place) * inner
                    latency[moving] += delay
                    hops[moving] -= sign
                continue
            moving = np.nonzero(place != target)[0]
            if not len(moving):
                continue
            if tier.wiring == "direct":
                entry = here[moving] + (target - place)[moving] * inner
                # In a partly filled topology there may be no chip in that place.
                entry = np.where(entry < self.topology.num_chips, entry, there[moving])
            else:
                entry = there[moving]
            uses.append((moving, here[moving] * self._per_chip + port))
            uses.append((moving, entry * self._per_chip + port + 1))
            here = here.copy()
            here[moving] = entry
            latency[moving] += delay
        return uses, latency

    def _around(self, place: Ints, target: Ints, extent: int, chip: Ints, inner: int) -> Ints:
        """Steps along a ring, the short way; where both are equally long, chips take turns."""
        hops = (target - place) % extent
        turns = (chip // inner + chip % inner) % 2 == 1
        back = (2 * hops > extent) | ((2 * hops == extent) & turns)
        return np.where(back, hops - extent, hops)


def _numbered(values: Ints) -> tuple[Ints, Ints]:
    """The different values, ascending, and the place of each among them."""
    first = int(values.min())
    span = int(values.max()) - first + 1
    if span > 4 * len(values) + 65_536:
        different, place = np.unique(values, return_inverse=True)
        return different, place
    there = np.zeros(span, np.int64)  # np.unique without sorting
    there[values - first] = 1
    different = np.nonzero(there)[0]
    there[different] = np.arange(len(different))
    return different + first, there[values - first]


def tier_work(network: Network, load: Load) -> Mapping[str, int]:
    """The most that one server of each kind has to do: bytes, or transfers to start."""
    most = np.zeros(len(network.kinds))
    np.maximum.at(most, load.servers % len(network.kinds), load.work)
    by_kind: dict[str, int] = {}
    for kind, work in zip(network.kinds, most):
        if work:
            by_kind[kind] = max(by_kind.get(kind, 0), int(work))
    return by_kind
