"""Numbers in the units that a person reads."""

_TIMES = ((1e12, "s"), (1e9, "ms"), (1e6, "us"), (1e3, "ns"))
_BINARY = ((2**50, "PiB"), (2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_DECIMAL = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def duration(ps: float) -> str:
    """A time in picoseconds: "1.5 ns"."""
    for step, unit in _TIMES:
        if ps >= step:
            return f"{ps / step:.4g} {unit}"
    return f"{ps:.0f} ps"


def size(count: float) -> str:
    """A number of bytes: "1.5 KiB"."""
    for step, unit in _BINARY:
        if count >= step:
            return f"{count / step:.4g} {unit}"
    return f"{count:.0f} B"


def rate(per_second: float, unit: str) -> str:
    """So many units a second, whose name begins with `unit`: "1.5 TB/s"."""
    for step, prefix in _DECIMAL:
        if per_second >= step:
            return f"{per_second / step:.4g} {prefix}{unit}"
    return f"{per_second:.4g} {unit}"


def percent(share: float) -> str:
    """A fraction of 1: "1.5 %"."""
    return f"{share * 100:.1f} %"
