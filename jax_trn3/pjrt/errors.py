"""Python exceptions as PJRT errors."""

from __future__ import annotations

import enum


class StatusCode(enum.IntEnum):
    """PJRT_Error_Code, which is absl::StatusCode."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class PjrtError(Exception):
    """An error with the status code that the framework shall see."""

    def __init__(self, code: StatusCode, message: str):
        super().__init__(message)
        self.code = code


# The first entry that fits decides.
_CODES: tuple[tuple[type[BaseException], StatusCode], ...] = (
    (MemoryError, StatusCode.RESOURCE_EXHAUSTED),
    (NotImplementedError, StatusCode.UNIMPLEMENTED),
    (KeyError, StatusCode.NOT_FOUND),
    (IndexError, StatusCode.OUT_OF_RANGE),
    (ValueError, StatusCode.INVALID_ARGUMENT),
    (TypeError, StatusCode.INVALID_ARGUMENT),
    (TimeoutError, StatusCode.DEADLINE_EXCEEDED),
    (KeyboardInterrupt, StatusCode.CANCELLED),
)


def status_of(error: BaseException | None) -> tuple[int, str]:
    """The code and the message for an exception that reached the shim.

    jaxlib's own errors already begin with the name of a code ("INVALID_ARGUMENT: ..."), which
    becomes the code again. (An interrupt is raised once more by the shim, in the main thread.)
    """
    if error is None:
        return StatusCode.INTERNAL, "an exception without a value"
    if isinstance(error, PjrtError):
        return error.code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return StatusCode.CANCELLED, "interrupted"
    name, separator, rest = str(error).partition(": ")
    if separator and name in StatusCode.__members__ and name != "OK":
        return StatusCode[name], rest
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code, str(error) or kind.__name__
    return StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
