"""Time of phases without simulating them: each kind of step once, on a few of the devices.

A step takes as long as its slowest transfer: the busiest server on its way, and its latency. Steps
are added up. That is never less than the event simulation finds, where a rank that is through does
not wait for others; and it is the same where some rank is on the slowest way in every step, as
symmetry makes it in groups that are regular.

Of large clusters only the first two UltraServers and the last are looked at. In regular groups the
others do the same.
"""

from dataclasses import dataclass

import numpy as np

from .groups import SMALL, Groups, Ints
from .network import Load, Network, tier_work
from .plan import Phase, steps_of
from .result import LocalTraffic, StepTime
from .schedule import Step


@dataclass(frozen=True)
class PhaseTime:
    """The steps of a phase in time."""

    steps: tuple[StepTime, ...]

    @property
    def time_ps(self) -> int:
        """All steps, ps."""
        return sum(step.repeat * step.time_ps for step in self.steps)


def narrow_time(phase: Phase, network: Network) -> PhaseTime:
    """How long a phase takes whose steps can be written down."""
    group = representatives(phase.groups, network)
    steps = []
    for step in steps_of(phase, network):
        load = network.load(step, phase.groups, group)
        name = f"{phase.algorithm}: {step.name}"
        steps.append(step_time(name, step.repeat, load, network, local_traffic(step, network)))
    return PhaseTime(tuple(steps))


def representatives(groups: Groups, network: Network) -> Ints:
    """Groups that are looked at: all, or those with ranks in the windows. A window whose devices
    are in the same places as some of another's has nothing to add."""
    if groups.num_devices <= SMALL:
        return np.arange(groups.count)
    span = network.devices_per_domain
    kept: list[tuple[Ints, Ints]] = []
    for group, member in windows(groups, network):
        place = groups.devices(group, member) % span
        kept = [other for other in kept if not np.isin(other[1], place).all()]
        if not any(np.isin(place, other[1]).all() for other in kept):
            kept.append((group, place))
    return np.unique(np.concatenate([group for group, _ in kept]))


def windows(groups: Groups, network: Network) -> list[tuple[Ints, Ints]]:
    """Group and member of the devices that are looked at: all, or those in the first two of the
    UltraServers concerned and the last."""
    if groups.num_devices <= SMALL:
        first, last = groups.extent
        return [groups.within(first, last + 1)]
    span = network.devices_per_domain
    first, last = (device // span for device in groups.extent)
    domains = sorted({first, min(first + 1, last), last})
    return [groups.within(domain * span, (domain + 1) * span) for domain in domains]


def step_time(
    name: str, repeat: int, load: Load, network: Network, local: LocalTraffic
) -> StepTime:
    """One step: its slowest transfer."""
    slowest = np.zeros(len(load.latency_ps), np.int64)
    np.maximum.at(slowest, load.transfer, load.duration_ps[load.used])
    total = slowest + load.latency_ps
    worst = int(np.argmax(total))
    bound = "latency"
    if slowest[worst] > load.latency_ps[worst]:
        used = load.used[load.transfer == worst]
        server = used[np.argmax(load.duration_ps[used])]
        bound = network.kind_of(load.servers[server : server + 1])[0]
    return StepTime(name, repeat, int(total[worst]), bound, tier_work(network, load), local)


def local_traffic(step: Step, network: Network) -> LocalTraffic:
    """What one repetition of a step asks of the busiest rank."""
    volume = np.broadcast_to(step.size * step.copies, step.src.shape)
    engine = step.src if step.engine is None else step.engine
    size = 1 + int(max(step.src.max(), step.dst.max()))
    moved = np.bincount(engine, volume * (step.reads + network.update_cost * step.updates), size)
    if network.memory == "sbuf":
        return LocalTraffic(0, 0, int(moved.max()))
    read = np.bincount(step.src, volume * step.reads, size)
    read += np.bincount(step.dst, volume * step.updates, size)
    written = np.bincount(step.dst, volume * step.writes, size)
    return LocalTraffic(int(read.max()), int(written.max()), int(moved.max()))
