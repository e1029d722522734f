"""JAX's persistent compilation cache (jax_compilation_cache_dir) for the platform.

JAX keeps a fixed list of platforms that it caches executables of. The platform shows the CPU's name
where that list is consulted; what is stored is Values.serialize().
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from jax._src import compilation_cache


def serve_persistent_cache(platform: str) -> None:
    """Lets `platform` through where JAX asks whether its cache is used; once a process."""
    upstream = compilation_cache.is_cache_used

    def is_cache_used(backend: Any) -> bool:
        if backend.platform == platform:
            backend = SimpleNamespace(platform="cpu", supports_executable_serialization=True)
        return upstream(backend)

    compilation_cache.is_cache_used = is_cache_used
