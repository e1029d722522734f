"""The user's JAX settings reach the program, and not the engine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from against_cpu import array, devices


def test_x64_of_the_user_reaches_the_program_and_not_the_engine() -> None:
    x = np.array([1, 2**40])
    with jax.enable_x64(True):
        y = jax.jit(lambda x: x + 1)(x)
        assert y.dtype == np.int64
        np.testing.assert_array_equal(np.asarray(y), x + 1)
        z = jax.device_put(y, jax.devices()[3])
    assert z.dtype == np.int64  # 64 bits stay 64 bits outside
    np.testing.assert_array_equal(np.asarray(z), x + 1)
    assert jax.jit(lambda x: x + 1)(np.arange(3)).dtype == np.int32


def test_transfer_guard_of_the_user_does_not_stop_the_engine() -> None:
    mesh = jax.sharding.Mesh(devices(*range(8)), "d")
    x = array(16)
    with jax.transfer_guard("disallow"):
        one = jax.device_put(x, jax.devices()[1])
        two = jax.device_put(one, jax.devices()[2])
        many = jax.device_put(x, jax.NamedSharding(mesh, jax.P("d")))
        sums = [jax.jit(lambda x: x + x)(v) for v in (one, two, many)]
        donated = jax.jit(lambda x: x * 2, donate_argnums=0)(one)
        results = [jax.device_get(v) for v in (*sums, donated)]
    for result in results:
        np.testing.assert_array_equal(result, x + x)


def test_transfer_guard_of_the_user_stops_the_user() -> None:
    with jax.transfer_guard("disallow"), pytest.raises(jax.errors.JaxRuntimeError, match="isallow"):
        jnp.sin(np.ones(3)).block_until_ready()


def test_default_device_of_the_user_is_where_programs_run() -> None:
    with jax.default_device(jax.devices()[4]):
        assert jax.jit(lambda: jnp.ones(3) + 1)().devices() == {jax.devices()[4]}
    with jax.default_device(jax.devices("cpu")[0]):
        y = jax.device_put(np.ones(3), jax.devices("trn3")[2])
        assert (y + 1).devices() == {jax.devices("trn3")[2]}


def test_debug_nans_of_the_user_works() -> None:
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        jax.jit(jnp.log)(np.float32(-1)).block_until_ready()
