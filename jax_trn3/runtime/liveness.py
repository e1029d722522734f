"""Who of the processes is still there.

A process that dies takes its sockets with it, and the kernel tells the other side at once. So each
process keeps a connection to process 0, on which nothing is said but "farewell", by one that ends
as it should, and "process N is lost", which process 0 passes on to the others.

(jaxlib's coordination service notices too, by heartbeats, after many seconds; but it cannot tell
Python: its callback has an argument that jaxlib does not convert, and without one it ends the
process.)
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Callable

_FAREWELL = -1
_MESSAGE = struct.Struct("<i")  # FAREWELL, or the number of a process
_JOIN_S = 60


def listen() -> socket.socket:
    """Where process 0 expects the others."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def accept(listener: socket.socket, count: int) -> dict[int, socket.socket]:
    """In process 0: the connections of the `count` - 1 others, by their numbers."""
    connections: dict[int, socket.socket] = {}
    listener.settimeout(_JOIN_S)
    with listener:
        while len(connections) < count - 1:
            connection, _ = listener.accept()
            connection.settimeout(None)
            index = _receive(connection)
            if index is not None and 0 < index < count and index not in connections:
                connections[index] = connection
            else:
                connection.close()  # a stranger
    return connections


def join(host: str, port: int, index: int) -> dict[int, socket.socket]:
    """In process `index`: the connection to process 0."""
    connection = socket.create_connection((host, port), _JOIN_S)
    connection.settimeout(None)
    connection.sendall(_MESSAGE.pack(index))
    return {0: connection}


class Watch:
    """Tells of processes that are lost.

    on_loss: called with the number of the first, on a thread of its own.
    """

    def __init__(self, connections: dict[int, socket.socket], on_loss: Callable[[int], None]):
        self.has_lost = False
        self._connections = connections
        self._on_loss = on_loss
        self._all_farewells = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trn3-liveness", daemon=True)
        self._thread.start()

    def say_farewell(self) -> None:
        """This process ends, and leaves nobody waiting."""
        self._send(_FAREWELL)

    def lose(self, index: int) -> None:
        """Process `index` will take no further part, the others learn."""
        if not self.has_lost:
            self.has_lost = True
            self._send(index)
            self._on_loss(index)

    def wait_for_farewells(self, timeout_s: float) -> None:
        """Until all others, but for those that are lost, are about to end."""
        self._all_farewells.wait(timeout_s)

    def wait_for_ends(self, timeout_s: float) -> None:
        """Until no other process is there any more."""
        self._thread.join(timeout_s)

    def _send(self, message: int) -> None:
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.sendall(_MESSAGE.pack(message))

    def _run(self) -> None:
        farewells: set[int] = set()
        with selectors.DefaultSelector() as selector:
            for index, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, index)
            while selector.get_map():
                for key, _ in selector.select():
                    message = _receive(self._connections[key.data])
                    is_over = message is None
                    if is_over:
                        selector.unregister(key.fileobj)
                        message = _FAREWELL if key.data in farewells else key.data
                    if message == _FAREWELL or is_over:
                        farewells.add(key.data)
                    if farewells.issuperset(self._connections):
                        self._all_farewells.set()
                    if message is not None and message != _FAREWELL:
                        self.lose(message)


def _receive(connection: socket.socket) -> int | None:
    """The next message; None if the other side is gone."""
    data = b""
    while len(data) < _MESSAGE.size:
        try:
            part = connection.recv(_MESSAGE.size - len(data))
        except OSError:
            return None
        if not part:
            return None
        data += part
    return _MESSAGE.unpack(data)[0]
