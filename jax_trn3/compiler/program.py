"""The program as the framework hands it over."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from jax._src.interpreters import mlir
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

# What a module's bytes contain, in MLIR's string table, if it has such an attribute at all.
_DONATION_MARKS = (b"tf.aliasing_output", b"jax.buffer_donor")
_MEMORY_KIND = "mhlo.memory_kind"
_DEFAULT_KIND = "device"
_OTHER_KINDS = (b"pinned_host",)  # and unpinned_host, of which it is a part
_MAGIC = b"ML\xefR"  # MLIR bytecode


@dataclasses.dataclass(frozen=True)
class Program:
    """A StableHLO module.

    code: a portable artifact (bytecode), which XLA takes as it is: going through text loses modules
      that have no name, and ones that the parser refuses.
    """

    code: bytes

    @classmethod
    def parse(cls, code: bytes, format: str) -> Program:
        """From what PJRT_Client_Compile gets. ValueError if that is not a StableHLO module."""
        if format != "mlir":
            raise ValueError(f'programs must be in format "mlir" (StableHLO), got {format!r}')
        if code.startswith(_MAGIC):
            return cls(code)
        with mlir.make_ir_context() as context:
            try:
                module = ir.Module.parse(code, context)
            except ir.MLIRError as error:
                raise ValueError(f"the program is not a StableHLO module: {error}") from None
            return cls(mlir.module_to_bytecode(module))

    def mentions(self, *marks: bytes) -> bool:
        """Whether any of the strings occurs in the module; cheap, and never wrong with a no."""
        return any(mark in self.code for mark in marks)

    def module(self) -> Any:
        """The module in a context of its own (`.context`)."""
        context = mlir.make_ir_context()
        try:
            return stablehlo.deserialize_portable_artifact(context, self.code)
        except Exception:
            with context:
                return ir.Module.parse(self.code, context)

    @functools.cached_property
    def donated(self) -> tuple[int, ...]:
        """Parameters that the caller lets the program have."""
        if not self.mentions(*_DONATION_MARKS):
            return ()
        marks = {mark.decode() for mark in _DONATION_MARKS}
        parameters, _ = self._attributes
        return tuple(i for i, names in enumerate(parameters) if marks & names.keys())

    def memory_kinds(self, parameters: int, outputs: int) -> tuple[tuple[str, ...], ...]:
        """The memory kinds of so many parameters and of so many outputs."""
        if not self.mentions(*_OTHER_KINDS):
            return (_DEFAULT_KIND,) * parameters, (_DEFAULT_KIND,) * outputs
        return tuple(
            tuple(names.get(_MEMORY_KIND, _DEFAULT_KIND) for names in attributes)
            for attributes in self._attributes
        )

    @functools.cached_property
    def _attributes(self) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        """name: text of the attributes of main's parameters and results."""
        module = self.module()
        with module.context:
            (main,) = (op for op in module.body if _is_main(op))
            function = ir.FunctionType(ir.TypeAttr(main.attributes["function_type"]).value)
            return (
                _texts(main, "arg_attrs", len(function.inputs)),
                _texts(main, "res_attrs", len(function.results)),
            )


def _is_main(op: Any) -> bool:
    return "sym_name" in op.attributes and ir.StringAttr(op.attributes["sym_name"]).value == "main"


def _text(attribute: Any) -> str:
    return attribute.value if isinstance(attribute, ir.StringAttr) else str(attribute)


def _texts(main: Any, name: str, count: int) -> list[dict[str, str]]:
    if name not in main.attributes:
        return [{} for _ in range(count)]
    return [
        {entry.name: _text(entry.attr) for entry in ir.DictAttr(attributes)}
        for attributes in ir.ArrayAttr(main.attributes[name])
    ]
