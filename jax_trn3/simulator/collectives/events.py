"""Event simulation of phases: every rank, every step, every server, in integer picoseconds.

A server takes the transfers of one step together: it opens for the step when it is through with the
step before and everybody who will use it is ready, shares itself evenly, and closes when the last
byte has passed. A transfer ends when the last server on its way has closed, and its latency has
passed. A rank is ready for the next step when all transfers that it is in have ended. So the order
of service depends on the schedule alone, and all times are sums and maxima of durations: more
bandwidth never makes anything later.
"""

from collections.abc import Sequence

import numpy as np

from .groups import Ints
from .network import Load, Network
from .plan import Phase, steps_of

MOST_DEVICES = 4_096


def simulate_phases(phases: Sequence[Phase], network: Network) -> int:
    """Time from the beginning of the first step until the last rank is through, ps.

    **Raises:** `ValueError` for more devices than can be simulated one by one.
    """
    for phase in phases:
        if phase.groups.num_devices > MOST_DEVICES:
            raise ValueError(
                f"{phase.groups.num_devices} devices are too many to simulate one by one "
                f"(at most {MOST_DEVICES}); use collective(), the closed form"
            )
    clock = Clock(network.topology.num_devices)
    for phase in phases:
        every = np.arange(phase.groups.count)
        for step in steps_of(phase, network):
            load = network.load(step, phase.groups, every)
            for _ in range(step.repeat):
                clock.advance(load)
    return clock.time_ps


class Clock:
    """When each rank is ready, and each server free."""

    def __init__(self, devices: int) -> None:
        self._ready = np.zeros(devices, np.int64)
        self._servers = np.zeros(0, np.int64)
        self._closed = np.zeros(0, np.int64)

    @property
    def time_ps(self) -> int:
        """When the last rank is ready, ps."""
        return int(self._ready.max())

    def advance(self, load: Load) -> None:
        """One step."""
        src, dst, engine = load.devices
        begin = np.maximum(self._ready[src], self._ready[engine])
        opened = self._closed_of(load.servers)
        np.maximum.at(opened, load.used, begin[load.transfer])
        closed = opened + load.duration_ps
        end = np.zeros(len(src), np.int64)
        np.maximum.at(end, load.transfer, closed[load.used])
        end += load.latency_ps
        for device in (src, dst, engine):
            np.maximum.at(self._ready, device, end)
        self._close(load.servers, closed)

    def _closed_of(self, servers: Ints) -> Ints:
        """When each of these servers was through with the steps before."""
        if not len(self._servers):
            return np.zeros(len(servers), np.int64)
        place = np.minimum(np.searchsorted(self._servers, servers), len(self._servers) - 1)
        return np.where(self._servers[place] == servers, self._closed[place], 0)

    def _close(self, servers: Ints, closed: Ints) -> None:
        # Servers that a step does not use keep their time.
        every = np.union1d(self._servers, servers)
        times = self._closed_of(every)
        times[np.searchsorted(every, servers)] = closed
        self._servers, self._closed = every, times
