"""What the fuzzer knows of the handles: which live, which are gone, who lends what."""

from __future__ import annotations

import collections
import random
from dataclasses import dataclass, field
from typing import Any

# The handles that are destroyed: by what, in which field.
DESTROY = {
    "PJRT_Error": ("Error_Destroy", "error"),
    "PJRT_Event": ("Event_Destroy", "event"),
    "PJRT_Client": ("Client_Destroy", "client"),
    "PJRT_Executable": ("Executable_Destroy", "executable"),
    "PJRT_LoadedExecutable": ("LoadedExecutable_Destroy", "executable"),
    "PJRT_Buffer": ("Buffer_Destroy", "buffer"),
    "PJRT_TopologyDescription": ("TopologyDescription_Destroy", "topology"),
    "PJRT_Layouts_MemoryLayout": ("Layouts_MemoryLayout_Destroy", "layout"),
}

KEPT = {"PJRT_Client": 4, "PJRT_LoadedExecutable": 24, "PJRT_TopologyDescription": 10}
CAPACITY = 40  # live handles of a kind, beyond which some are destroyed first
STALE = 200  # handles that die in the shim before a stale one is forgotten; it remembers 512


class Violation(Exception):
    """The library did what it must not do."""


@dataclass(eq=False)
class Handle:
    """A live handle.

    owned: how often it has to be destroyed; 0 for one that is lent by another.
    lends: the handles that end with it.
    keeper: what keeps it alive whether it is owned or not.
    about: what is known of the object.
    """

    kind: str
    address: int
    owned: int = 0
    lends: list[Handle] = field(default_factory=list)
    keeper: Handle | None = None
    about: dict[str, Any] = field(default_factory=dict)


class Model:
    """All handles, by kind and by address."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.pools: dict[str, list[Handle]] = collections.defaultdict(list)
        self.by_address: dict[int, Handle] = {}
        self.stale: collections.deque[tuple[int, str, int]] = collections.deque(maxlen=STALE)
        self.deaths = 0
        self.immortal: dict[int, Handle] = {}  # the event that is always ready

    def add(self, kind: str, address: int, **about: Any) -> Handle:
        """A handle that the library gave us to destroy."""
        known = self.by_address.get(address)
        if address in self.immortal:
            return self.immortal[address]
        if known is not None:
            if known.kind != kind or kind not in ("PJRT_Event", "PJRT_Executable"):
                raise Violation(f"a new {kind} has the address of a live {known.kind}")
            known.owned += 1
            if known.owned == 1:
                self.pools[kind].append(known)
            return known
        handle = Handle(kind, address, owned=1, about=about)
        self.by_address[address] = handle
        self.pools[kind].append(handle)
        return handle

    def make_immortal(self, kind: str, address: int) -> None:
        """A handle that may be destroyed as often as one likes."""
        self.immortal[address] = self.by_address[address] = Handle(kind, address)
        self.pools[kind].append(self.immortal[address])

    def may_destroy(self, handle: Handle) -> bool:
        return handle.owned > 0 or handle.address in self.immortal

    def lend(self, owner: Handle, kind: str, address: int, **about: Any) -> Handle:
        """A handle that ends with its owner."""
        known = self.by_address.get(address)
        if known is not None:
            if known.kind != kind or known not in owner.lends:
                raise Violation(f"a lent {kind} has the address of a live {known.kind}")
            return known
        handle = Handle(kind, address, about={"owner": owner, **about})
        self.by_address[address] = handle
        self.pools[kind].append(handle)
        owner.lends.append(handle)
        return handle

    def destroyed(self, handle: Handle) -> None:
        """One reference of ours was destroyed."""
        if handle.address in self.immortal:
            return
        handle.owned -= 1
        if handle.owned > 0:
            return
        self._retire(handle, really=handle.keeper is None)

    def _retire(self, handle: Handle, really: bool) -> None:
        if handle in self.pools[handle.kind]:
            self.pools[handle.kind].remove(handle)
        self.was_destroyed(handle.kind, handle.address)
        if not really:
            return
        self.by_address.pop(handle.address, None)
        for one in handle.lends:
            self._retire(one, really=True)
        executable = handle.about.get("executable")
        if executable is not None:
            executable.keeper = None
            if executable.owned == 0:
                self._retire(executable, really=True)

    def was_destroyed(self, kind: str, address: int) -> None:
        self.deaths += 1
        self.stale.append((address, kind, self.deaths))

    def draw_stale(self, kind: str) -> int:
        """The address of a destroyed handle, of this kind if there is one; 0 if there is none."""
        horizon = self.deaths - STALE // 2
        recent = [
            (address, was)
            for address, was, when in self.stale
            if when > horizon and self.is_gone(address)
        ]
        same = [address for address, was in recent if was == kind]
        if same:
            return self.rng.choice(same)
        return self.rng.choice(recent)[0] if recent else 0

    def is_gone(self, address: int) -> bool:
        handle = self.by_address.get(address)
        return handle is None or (
            address not in self.immortal and handle.owned == 0 and "owner" not in handle.about
        )

    def room(self, kind: str) -> bool:
        return len(self.pools[kind]) < CAPACITY

    def overfull(self) -> str | None:
        """The function that destroys what there is too much of."""
        for kind, (function, _) in DESTROY.items():
            limit = KEPT.get(kind, CAPACITY)
            pool = self.pools[kind]
            if len(pool) > limit and sum(h.owned > 0 for h in pool) > limit:
                return function
        return None
