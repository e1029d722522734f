"""profile(): what ran is counted, and simulated afterwards."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jax_trn3


@jax.jit
def product(x):
    return jnp.tanh(x @ x)


def test_runs_are_counted_and_timed() -> None:
    x = jax.device_put(jnp.ones((256, 256)), jax.devices("trn3")[0])
    product(x)
    with jax_trn3.profile() as profile:
        for _ in range(5):
            x = product(x)
        x.block_until_ready()
    (ran,) = profile.programs
    assert (ran.estimate.name, ran.count) == ("jit_product", 5)
    alone = jax_trn3.estimate(product, jax.ShapeDtypeStruct((256, 256), jnp.float32))
    assert ran.estimate.time_ps == alone.time_ps
    assert profile.time_s == pytest.approx(5 * alone.time_s)
    assert 0 < profile.engines["tensor"] < 1
    assert "jit_product" in profile.summary()


def test_programs_compiled_inside_and_gone_are_counted() -> None:
    with jax_trn3.profile() as profile:
        x = jax.device_put(jnp.ones((128, 128)), jax.devices("trn3")[0])
        fresh = jax.jit(lambda x: x @ x + 3)
        fresh(x).block_until_ready()
        del fresh
        jax.clear_caches()
    assert 1 in [ran.count for ran in profile.programs if "lambda" in ran.estimate.name]


def test_nothing_ran() -> None:
    with jax_trn3.profile() as profile:
        pass
    assert profile.programs == ()
    assert profile.time_s == 0
    assert profile.engines == {}


def test_a_profile_is_asked_after_the_block() -> None:
    with jax_trn3.profile() as profile, pytest.raises(RuntimeError, match="ask after the with"):
        profile.programs  # noqa: B018


def test_profiles_nest_and_end_with_exceptions() -> None:
    x = jax.device_put(jnp.ones((256, 256)), jax.devices("trn3")[0])
    with jax_trn3.profile() as outer:
        with pytest.raises(ZeroDivisionError), jax_trn3.profile() as inner:  # noqa: PT012
            product(x)
            raise ZeroDivisionError
        product(x)
    assert [ran.count for ran in inner.programs] == [1]
    assert [ran.count for ran in outer.programs] == [2]


def test_views(tmp_path: Path) -> None:
    x = jax.device_put(jnp.ones((256, 256)), jax.devices("trn3")[0])
    with jax_trn3.profile() as profile:
        product(x).block_until_ready()
    profile.save(tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text())
    with pytest.raises(ValueError, match="no view ends in"):
        profile.save(tmp_path / "p.doc")


def test_the_environment_asks_for_a_profile(tmp_path: Path, run_python) -> None:
    code = "import jax, jax.numpy as jnp\nx = jnp.ones((128, 128))\njax.jit(jnp.dot)(x, x)"
    done = run_python(code, JAX_TRN3_PROFILE=str(tmp_path / "here"))
    assert done.returncode == 0, done.stderr
    assert "jit_dot" in (tmp_path / "here" / "profile.txt").read_text()
    assert json.loads((tmp_path / "here" / "profile.json").read_text())
