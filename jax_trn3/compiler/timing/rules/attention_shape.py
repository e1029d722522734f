"""What an attention operation asks for: its sizes, and which blocks of it are hidden."""

import ast
from dataclasses import dataclass

from jax_trn3.hardware import Chip

from ..graph import Operation
from .dimensions import dimension_numbers
from .tiles import COLUMNS, ROWS, ceil_div, held_as, size

LONGEST = 10 * 1024
"""Keys that are treated at once, at most: nki-library's attention_cte does as many."""

_SECTION = 8192
"""Keys of a section where there are more."""


@dataclass(frozen=True)
class Shape:
    """Attention of one device: some heads of keys and values, each with a group of query heads."""

    heads: int
    """Of keys and values, of all the batch."""

    group: int
    """Query heads to each."""

    queries: int
    keys: int
    features: int
    """Of queries and keys."""

    value_features: int
    dtype: str
    """Of the operands: StableHLO's name."""

    run: int
    """Elements of the keys (and values) of a head that lie next to each other."""

    causal: bool = False
    window: tuple[int, int] | None = None
    cap: bool = False
    bias: str = ""
    """Its element type, if there is one."""

    mask: bool = False
    sinks: bool = False
    mx: bool = False
    longest: int = LONGEST
    """Keys that are treated at once."""

    @property
    def sections(self) -> int:
        """Parts of the keys that are treated one after another."""
        return 1 if self.keys <= self.longest else ceil_div(self.keys, min(_SECTION, self.longest))

    @property
    def length(self) -> int:
        """Keys in each."""
        return ceil_div(self.keys, self.sections)

    @property
    def tile(self) -> int:
        """Keys in a tile: fewer where a window shows few."""
        widest = COLUMNS
        if self.window is not None:
            seen = self.window[0] + (0 if self.causal else self.window[1]) + ROWS
            widest = max(ROWS, min(COLUMNS, ceil_div(seen, 2 * ROWS) * ROWS))
        return ceil_div(self.length, ceil_div(self.length, widest))

    @property
    def rows(self) -> int:
        """Queries in a group: of several heads, if one has too few."""
        return min(ROWS, self.queries * self.group)

    @property
    def groups(self) -> int:
        """Groups of queries of one head of keys."""
        if self.queries < ROWS:
            return ceil_div(self.queries * self.group, ROWS)
        return self.group * ceil_div(self.queries, ROWS)

    def visible(self) -> int:
        """Pairs of a group of queries and a tile of keys, of one head of keys, in which some query
        sees some key: the others are left out."""
        if not self.causal and self.window is None:
            return self.groups * ceil_div(self.keys, self.tile)
        once = ceil_div(self.queries, ROWS)
        left, right = self.window if self.window is not None else (self.keys, self.keys)
        if self.causal:
            right = min(right, 0)
        total = 0
        for start in range(0, once * ROWS, ROWS):
            stop = min(start + ROWS, self.queries)
            first = max(0, start - left) // self.tile
            last = ceil_div(max(0, min(self.keys, stop + right)), self.tile)
            total += max(1, last - first)
        return ceil_div(total * self.groups, once)

    @property
    def products(self) -> int:
        """Pairs of a query and a key that see each other."""
        pairs = self.queries * self.keys
        if self.causal or self.window is not None:
            left, right = self.window if self.window is not None else (self.keys, self.keys)
            right = min(right, 0) if self.causal else right
            pairs = _band(self.queries, self.keys, left, right)
        return self.heads * self.group * pairs


def _band(rows: int, columns: int, left: int, right: int) -> int:
    """Elements of a matrix with row - left <= column <= row + right."""
    return _below(rows, columns, right) - _below(rows, columns, -left - 1)


def _below(rows: int, columns: int, offset: int) -> int:
    """Elements with column <= row + offset."""
    first = max(0, -offset)
    full = max(first, min(rows, columns - 1 - offset))
    count = full - first
    ramp = count * (first + offset + 1 + full + offset) // 2 if count else 0
    return ramp + max(0, rows - max(full, first)) * columns if offset < columns else rows * columns


def of_operation(operation: Operation) -> Shape:
    """The shape of one of `ops/attention_primitives.py`'s operations."""
    names = str(operation.attributes["operands"]).split(",")
    arrays = dict(zip(names, operation.operands))
    query, key, value = (arrays[name] for name in ("query", "key", "value"))
    batch, queries, heads, features = query.shape
    _, keys, kv_heads, _ = key.shape
    window = operation.attributes.get("local_window_size")
    if isinstance(window, str):
        window = ast.literal_eval(window)
    bias, precision = arrays.get("bias"), operation.attributes.get("precision")
    return Shape(
        heads=batch * kv_heads,
        group=heads // max(1, kv_heads),
        queries=queries,
        keys=keys,
        features=features,
        value_features=value.shape[-1],
        dtype=query.dtype,
        run=features * (keys if kv_heads == 1 else 1),
        causal=bool(operation.attributes.get("is_causal")),
        window=tuple(window) if window is not None else None,
        cap=operation.attributes.get("logits_soft_cap") is not None,
        bias=bias.dtype if bias is not None else "",
        mask="mask" in arrays,
        sinks="sinks" in arrays,
        mx=precision == "mxfp8",
    )


def recognized(operation: Operation) -> Shape:
    """The shape of a `trn3.recognized_attention`, whose operands are in no fixed order: sizes of
    heads and features are those of the products in it.

    **Raises:** `ValueError` if it has no product in it.
    """
    queries, keys = (int(operation.attributes[name]) for name in ("queries", "keys"))
    dots = [
        op
        for region in operation.regions
        for op in region.walk()
        if op.kind in ("stablehlo.dot_general", "trn3.mx_dot_general", "trn3.bf16_dot_general")
    ]
    if not dots:
        raise ValueError(f"{operation.kind} at {operation.source} has no product in it")
    scores = max(dots, key=lambda op: op.results[0].size)
    features = _contracted(scores)
    whole = [t for t in operation.results if t.size % (queries * features) == 0]
    largest = max(whole or operation.results, key=lambda t: t.size)
    heads = max(1, largest.size // (queries * features))
    columns = {n for op in dots for n in op.results[0].shape[-1:] if n > features}
    shared = [
        t.size // (keys * features)
        for t in operation.operands
        if t.size and t.size % (keys * features) == 0 and t.size < heads * queries * features
    ]
    kv_heads = min([n for n in shared if heads % n == 0], default=heads)
    dtype = scores.operands[0].dtype
    loops = sum(
        op.kind == "stablehlo.while" for region in operation.regions for op in region.operations
    )
    return Shape(
        kv_heads, heads // kv_heads, queries, keys, features, features, dtype, features,
        causal=loops > 1 and len(columns) > 1, mx=scores.kind == "trn3.mx_dot_general",
    )  # fmt: skip


def _contracted(dot: Operation) -> int:
    shape = dot.operands[0].shape
    return size([shape[d] for d in dimension_numbers(dot).contracting[0]])


def lacks(shape: Shape, chip: Chip) -> str:
    """What the hardware lacks for an attention of this type."""
    if shape.dtype == "f64":
        return "float64: attention in float32"
    if shape.mx and chip.core.generation < 4:
        return "MX products before NeuronCore-v4: values put on their grid by VectorE"
    return ""


def computed_in(shape: Shape, chip: Chip) -> str:
    """Element type of the products."""
    if shape.dtype in ("f32", "f64"):
        return "float32" if not shape.mx else "bfloat16"
    held = held_as(shape.dtype, chip.core)
    return held if held in ("bfloat16", "float16") else "bfloat16"
