"""A few microseconds of a timeline as an SVG: a lane an engine, a bar an instruction."""

import itertools
from html import escape

from jax_trn3.simulator import Timeline

_WIDTH, _LANE, _LEFT = 900, 22, 90
_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#332288")
_LANES = ("tensor", "tensor background", "vector", "scalar", "gpsimd")


def picture(timeline: Timeline, title: str, microseconds: float = 8.0, at: float = 0.5) -> str:
    """The window of that length that begins at share `at` of the time."""
    first = int(timeline.active_ps * at)
    last = first + int(microseconds * 1e6)
    bars = [
        (lane.partition("/")[2], timeline.instructions[static].name, start, free)
        for _, start, free, _, _, static in timeline.expand().tolist()
        if start < last and free > first
        for lane in (timeline.lanes[static],)
    ]
    lanes = [name for name in _LANES if any(lane == name for lane, *_ in bars)]
    names = sorted({name for lane, name, *_ in bars if lane in lanes})
    colors = dict(zip(names, itertools.cycle(_COLORS)))
    height = _LANE * (len(lanes) + 2) + 24
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 10}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="100%" height="100%" fill="white"/><text x="4" y="14">{escape(title)}</text>',
    ]
    for lane, name, start, free in bars:
        if lane not in lanes:
            continue
        x = _LEFT + (max(start, first) - first) * _WIDTH / (last - first)
        wide = (min(free, last) - max(start, first)) * _WIDTH / (last - first)
        y = 22 + _LANE * lanes.index(lane)
        out.append(
            f'<rect x="{x:.1f}" y="{y}" width="{max(wide - 0.4, 0.3):.1f}" height="{_LANE - 4}" '
            f'fill="{colors[name]}"/>'
        )
    for number, lane in enumerate(lanes):
        out.append(
            f'<text x="4" y="{36 + _LANE * number}">{lane.replace(" background", " behind")}</text>'
        )
    below = 22 + _LANE * len(lanes)
    out.append(f'<text x="4" y="{below + 14}">{microseconds:g} us</text>')
    for number, name in enumerate(names):
        x, y = _LEFT + 150 * (number % 6), below + 4 + 14 * (number // 6)
        out.append(f'<rect x="{x}" y="{y}" width="10" height="10" fill="{colors[name]}"/>')
        out.append(f'<text x="{x + 14}" y="{y + 10}">{name}</text>')
    return "\n".join([*out, "</svg>\n"])
