"""Writes docs/neuron_sdk.md, the page of the rules of `check`: python tools/neuron_sdk_page.py"""

from collections.abc import Iterator
from pathlib import Path

from jax_trn3.neuron_sdk import RULES, SDK, Rule
from jax_trn3.neuron_sdk.finding import SEVERITIES

PAGE = Path(__file__).parents[1] / "docs" / "neuron_sdk.md"
JAX = "https://github.com/jax-ml/jax/blob/main/"
SOURCE = "https://github.com/aws-neuron/aws-neuron-sdk/blob/81ce03ae/"

HEAD = f"""# What the real Neuron SDK would refuse or change

Written by `tools/neuron_sdk_page.py` from the table in `jax_trn3/neuron_sdk/table.py`: edit the
table, not this page.

`jax_trn3.check(fun, *args)` traces and lowers a function, runs nothing, and lists what the SDK's
documentation speaks of, each with its source line and a way out:

```python
x = jax.ShapeDtypeStruct((8, 128), jnp.float32)
print(jax_trn3.check(lambda x: jnp.argmax(x, axis=1), x))
```

On the command line: `jax-trn3 check model.py:step`, with the arguments from the file's
`example_args`.

Everything here is from public documentation; nothing was tried on hardware. The version is {SDK}.
Where two pages contradict each other, the rule says so. No finding means that no rule was met, not
that a program compiles: the compiler's list of operators is not published
(`neuronx-cc list-operators --framework XLA` prints it).

- **refused**: a page says that it is not supported.
- **changed**: it is taken, with other values, with errors at run time, or under conditions.
- **slow**: it is taken, and costs more than it has to, in time or in compilation.

Operations whose result follows from constants are left out where a rule is about what is only known
at run time: branches, trip counts, indices.
"""

TAIL = """## What no program shows

The same pages speak of things that are not in a program, so that `check` cannot find them:

- `jax.dlpack` is not supported, and meshes over cores that are not connected might crash
  ([known issues]({issues})).
- Programs can be too large (NCC_EBVF030, NCC_EVRF007, NCC_EXTP004: too many instructions;
  NCC_EOOM001, NCC_EOOM002, NCC_EVRF009, NCC_EXSP001: too much memory). `jax_trn3.estimate` says
  what needs how much.
- Collectives that the partitioner makes of shardings: the rules for integers see those that a
  program writes itself, in `shard_map`.
- Neuron's own custom calls and NKI kernels have rules of their own (NCC_EVRF036 to EVRF065,
  NCC_EBIR023).
- SDK 2.32 is for JAX 0.7.0 to 0.10.0; compilation cache and donation need work-arounds only before
  JAX 0.4.34.
"""


def page() -> str:
    """The whole page."""
    issues = SOURCE + "frameworks/jax/setup/jax-neuronx-known-issues.rst"
    return "\n".join([HEAD, *_rules(), TAIL.format(issues=issues)])


def _rules() -> Iterator[str]:
    for severity in SEVERITIES:
        yield f"## {severity.capitalize()}\n"
        for rule in RULES:
            if rule.severity == severity:
                yield from _section(rule)


def _section(rule: Rule) -> Iterator[str]:
    yield f"### {rule.id}\n"
    yield f"{_sentence(rule.says)}\n"
    yield f"- Way out: {_sentence(rule.way_out)}"
    yield f"- Seen in {_seen(rule)}. Source: {', '.join(map(_link, rule.pages))}\n"


def _sentence(text: str) -> str:
    """Begun with a capital, unless by the name of something in a program."""
    first, _, _ = text.partition(" ")
    return f"{text[0].upper()}{text[1:]}." if first.isalpha() else f"{text}."


def _seen(rule: Rule) -> str:
    if rule.equation:
        return "what JAX traces (jaxpr)"
    return "the dtypes of arrays, where one appears first" if rule.dtype else "the lowered program"


def _link(page: str) -> str:
    root = JAX if page.startswith("jax/") else SOURCE
    return f"[{Path(page).stem}]({root}{page})"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE}: {len(RULES)} rules")
