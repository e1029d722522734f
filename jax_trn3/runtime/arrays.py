"""Arrays on the inner XLA:CPU devices: to them, from them, between them.

Everything goes through jaxlib's own functions, which do not consult the caller's JAX configuration
(x64, default device, ...); the transfer guard, which they do consult, has had its say before a call
reaches the platform.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax._src.lib import _jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jax_trn3.pjrt import dtypes

_ZERO_COPY = 2  # PJRT_HostBufferSemantics_kImmutableZeroCopy; 3 is its mutable twin
_ALWAYS_COPY = _jax.ArrayCopySemantics.ALWAYS_COPY


@dataclasses.dataclass(frozen=True)
class Aval:
    """The three attributes that jaxlib reads off an abstract value; of one shard, here."""

    shape: tuple[int, ...]
    dtype: np.dtype
    weak_type: bool = False


_ALLOW = _jax.guard_lib.TransferGuardLevel.ALLOW


def _unguarded(transfer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """transfer(...) without the transfer guard of this thread."""
    state = _jax.guard_lib.thread_local_state()
    saved = state.host_to_device, state.device_to_device
    state.host_to_device = state.device_to_device = _ALLOW
    try:
        return transfer(*args, **kwargs)
    finally:
        state.host_to_device, state.device_to_device = saved


@functools.lru_cache(maxsize=4096)
def _aval(dims: tuple[int, ...], buffer_type: int) -> Aval:
    return Aval(dims, dtypes.dtype_of(buffer_type))


def extent(dims: Sequence[int], strides: Sequence[int] | None, itemsize: int) -> tuple[int, int]:
    """Bytes before and after the address of element 0 that a strided array covers."""
    if 0 in dims:
        return 0, 0
    if strides is None:
        return 0, math.prod(dims) * itemsize
    steps = [(dim - 1) * stride for dim, stride in zip(dims, strides)]
    return -sum(s for s in steps if s < 0), sum(s for s in steps if s > 0) + itemsize


class Places:
    """The inner devices, and what jaxlib wants to be told when something goes there.

    A device is named by its number, which is its local_hardware_id; its id is `first_id` more.
    """

    def __init__(self, devices: Sequence[Any], first_id: int):
        self.devices = list(devices)
        self.first_id = first_id
        self.shardings = [SingleDeviceSharding(device) for device in devices]
        self.device_lists = [_jax.DeviceList((device,)) for device in devices]
        self._groups: dict[tuple[int, ...], Any] = {}

    def side_by_side(self, numbers: tuple[int, ...]) -> Any:
        """A sharding for one shard on each of the devices, whatever the shards hold.

        It calls itself replicated, so that the global shape is a shard's; nothing here or in XLA
        takes that as a promise that the values are equal.
        """
        if len(numbers) == 1:
            return self.shardings[numbers[0]]
        if numbers not in self._groups:
            devices = np.array([self.devices[number] for number in numbers])
            self._groups[numbers] = NamedSharding(Mesh(devices, "shard"), PartitionSpec())
        return self._groups[numbers]


def from_host(
    host: Any,
    buffer_type: int,
    dims: tuple[int, ...],
    strides: tuple[int, ...] | None,
    semantics: int,
    device: int,
    places: Places,
) -> Any:
    """See pjrt.api.Client.from_host."""
    aval = _aval(dims, buffer_type)
    before, after = extent(dims, strides, aval.dtype.itemsize)
    window = host.window(before, after)
    view: np.ndarray = np.ndarray(dims, aval.dtype, buffer=window, offset=before, strides=strides)
    return _unguarded(
        _jax.batched_device_put,
        aval,
        places.shardings[device],
        [view],
        [places.devices[device]],
        True,
        force_copy=semantics < _ZERO_COPY,
        enable_x64=True,
    )


def shard(array: Any, index: int) -> Any:
    """Shard `index` of an array, as an array on one device.

    Once a shard is donated by itself, jaxlib takes the whole array for deleted and hands out none
    of the others, although they are still there; so the array remembers them.
    """
    parts = array._arrays
    if parts is None:
        parts = getattr(array, "_trn3_parts", None)
        if parts is None:
            raise ValueError("the array has been deleted or donated")
    elif len(parts) == 1:
        return array
    else:
        array._trn3_parts = parts
    return parts[index]


def to_numpy(array: Any, index: int) -> np.ndarray:
    """The values of a shard: a view of the device's memory, or for elements of less than a byte an
    unpacked copy."""
    values, _ = shard(array, index)._single_device_array_to_np_array_did_copy()
    return values


def to_bytes(array: Any, index: int, minor_to_major: tuple[int, ...] | None) -> np.ndarray:
    """The values of a shard as uint8, in the order of `minor_to_major` (None: row-major)."""
    values = to_numpy(array, index)
    if minor_to_major is not None:
        values = values.transpose(minor_to_major[::-1])
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def copy(array: Any, index: int, device: int, places: Places) -> Any:
    """A copy of a shard on a device."""
    (result,) = _unguarded(
        _jax.batched_copy_array_to_devices_with_sharding,
        [shard(array, index)],
        [places.device_lists[device]],
        [places.shardings[device]],
        [_ALWAYS_COPY],
    )
    return result


def _device_of(array: Any) -> int:
    return array.sharding._device.local_hardware_id


def assemble(shards: Sequence[tuple[Any, int]], places: Places) -> Any:
    """See pjrt.api.Client.assemble."""
    arrays = [shard(array, index) for array, index in shards]
    if len(arrays) == 1:
        return arrays[0]
    sharding = places.side_by_side(tuple(map(_device_of, arrays)))
    aval = Aval(arrays[0].shape, arrays[0].dtype)
    return _jax.ArrayImpl(aval, sharding, arrays, committed=True, _skip_checks=True)


def duplicate(array: Any, places: Places) -> Any:
    """See pjrt.api.Client.duplicate."""
    copies = [(copy(part, 0, _device_of(part), places), 0) for part in array._arrays]
    return assemble(copies, places)
