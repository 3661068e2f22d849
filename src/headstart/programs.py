"""Compiled programs, kept between processes in the cache folder."""

from __future__ import annotations

import os

import jax

from headstart.datasets.cache import cache_root


def keep_programs() -> None:
    """Have JAX keep what it compiles, unless the user's environment says where; before it compiles anything."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "programs"))
