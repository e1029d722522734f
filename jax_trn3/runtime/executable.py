"""A compiled program on its devices."""

from __future__ import annotations

import functools
from typing import Any

from jax._src.lib import _jax

from jax_trn3 import compiler, pjrt
from jax_trn3.hardware import Topology
from jax_trn3.pjrt import dtypes

from . import arrays
from .executions import remember

# jaxlib has dropped the argument since 0.10, and with it the checks.
_UNCHECKED = (
    {"_skip_checks": True} if "_skip_checks" in (_jax.array_result_handler.__doc__ or "") else {}
)


class Executable:
    """Implements pjrt.Executable over an XLA:CPU executable."""

    def __init__(self, values: compiler.Values, topology: Topology):
        self._values = values
        self._topology = topology
        self._inner = values.executable

    @functools.cached_property
    def metadata(self) -> pjrt.ExecutableMetadata:
        values, inner = self._values, self._inner
        outputs, parameters = inner.get_output_shardings(), inner.get_parameter_shardings()
        has_shardings = outputs is not None and parameters is not None
        return pjrt.ExecutableMetadata(
            name=values.name,
            fingerprint=inner.fingerprint or b"",
            compile_options=values.options.SerializeAsString(),
            device_assignment=values.device_assignment,
            num_replicas=values.options.num_replicas,
            num_partitions=values.options.num_partitions,
            parameter_types=tuple(dtypes.type_of(one.dtype) for one in values.parameters),
            parameter_dims=tuple(one.dims for one in values.parameters),
            code_bytes=inner.size_of_generated_code_in_bytes(),
            temporary_bytes=values.temporary_bytes,
            output_types=tuple(dtypes.type_of(output.dtype) for output in values.outputs),
            output_dims=tuple(output.dims for output in values.outputs),
            output_kinds=values.output_kinds,
            parameter_kinds=values.parameter_kinds,
            output_layouts=tuple(output.layout for output in values.outputs),
            parameter_layouts=tuple(parameter.layout for parameter in values.parameters),
            output_shardings=_serialized(outputs) if has_shardings else None,
            parameter_shardings=_serialized(parameters) if has_shardings else None,
            donated=values.program.donated,
        )

    def cost_analysis(self) -> dict[str, pjrt.api.Attribute]:
        return dict(compiler.cost_analysis(self._values.program.module(), self._topology))

    def memory_stats(self) -> pjrt.MemoryStats:
        stats = self._inner.get_compiled_memory_stats()
        fields = pjrt.MemoryStats.__dataclass_fields__
        return pjrt.MemoryStats(**{name: int(getattr(stats, name, 0)) for name in fields})

    def optimized_program(self) -> tuple[str, bytes]:
        (module,) = self._inner.hlo_modules()
        options = self._values.options
        return "hlo_with_config", compiler.protobuf.hlo_with_config(
            module.as_serialized_hlo_module_proto(), options.num_replicas, options.num_partitions
        )

    def serialize(self) -> bytes:
        return self._values.serialize()


class LoadedExecutable:
    """Implements pjrt.LoadedExecutable."""

    def __init__(self, values: compiler.Values, places: arrays.Places, topology: Topology):
        self.executable = Executable(values, topology)
        self.devices = values.devices
        self.has_collectives = values.has_collectives
        self.can_fail = values.has_collectives or values.has_custom_calls
        self.launch = values.executable.execute_sharded
        self.runs = [0]
        self.values = values
        self.topology = topology
        remember(self)
        sharding = places.side_by_side(tuple(id - places.first_id for id, _, _ in values.devices))
        self.handlers = [
            _jax.array_result_handler(arrays.Aval(o.dims, o.dtype), sharding, True, **_UNCHECKED)
            for o in values.outputs
        ]


def _serialized(shardings: list[Any]) -> tuple[bytes, ...]:
    return tuple(sharding.SerializeToString() for sharding in shardings)
