"""Semaphores under the checks: who waits for whom, and for what in vain."""

from __future__ import annotations

from typing import Any

from ..errors import EndlessWait, SemaphoreLeft
from ..kernel import Kernel
from ..params import explicit
from ..source import line
from .circles import chain
from .order import KERNEL, Order, Semaphore, Signal
from .semaphores import add
from .storage import Keys, Storage


class Semaphores:
    """Those of one kernel."""

    def __init__(self, kernel: Kernel, order: Order):
        self.whole, self.kernel, self.order = kernel, kernel.name, order
        self.known: dict[tuple[int, str], Semaphore] = {}

    def signal(self, equation: Any, ref: Storage, keys: Keys, count: int, agent: str) -> None:
        """An agent adds to one."""
        agent = agent or KERNEL
        clock = dict(self.order.clocks.setdefault(agent, {}))
        self.of(ref, keys).signals.append(Signal(agent, count, clock, equation))
        add(ref, keys, count)

    def wait(
        self, equation: Any, ref: Storage, keys: Keys, count: int, agent: str, take: bool
    ) -> None:
        """An agent waits."""
        agent = agent or KERNEL
        semaphore = self.of(ref, keys)
        if semaphore.value < count:
            self._endless(equation, semaphore, count, agent)
        semaphore.take(count, self.order.clocks.setdefault(agent, {}), not take)
        if take:
            add(ref, keys, -count)

    def of(self, ref: Storage, keys: Keys) -> Semaphore:
        """The semaphore there."""
        place = str(keys)
        if (id(ref), place) not in self.known:
            index = "".join(str([int(k) for k in key]) for key in keys)
            self.known[id(ref), place] = Semaphore(ref, keys, ref.name + index)
        return self.known[id(ref), place]

    def ended(self, ref: Storage, where: str) -> None:
        """Nobody can wait for it any more.

        **Raises:** `SemaphoreLeft` if something is left in it.
        """
        mine = [k for k, s in self.known.items() if s.ref is ref]
        for semaphore in [self.known.pop(k) for k in mine]:
            if semaphore.value:
                last = semaphore.signals[-1].equation
                raise SemaphoreLeft(
                    f"kernel {self.kernel}: semaphore {semaphore.name} holds {semaphore.value} at "
                    f"the end of {where}; it must be 0: what {line(last)} signals is never waited "
                    "for. Wait for every signal, and for every copy that was started"
                )

    def _endless(self, equation: Any, semaphore: Semaphore, count: int, agent: str) -> None:
        given = sum(s.count for s in semaphore.signals)
        each = [f"{s.count} at {line(s.equation)}" for s in semaphore.signals]
        signalled = "nobody has signalled it"
        if each:
            signalled = f"signalled so far: {', '.join(each)}"
        why = chain(self.whole, semaphore.ref.name, agent, equation, explicit(self.whole.params))
        raise EndlessWait(
            f"kernel {self.kernel}, {line(equation)}: {agent} waits for {count} of semaphore "
            f"{semaphore.name}, which holds {given - semaphore.taken}; {signalled}; {why}. "
            "Signal it earlier in the kernel than it is waited for"
        )


def is_semaphore(ref: Storage) -> bool:
    """Whether it is one, or several."""
    return ref.memory == "semaphore"
