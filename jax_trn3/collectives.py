"""Collectives for use in shard_map and pmap: jax.lax's, and the same with an MX wire format."""

from .ops.collectives import all_gather as all_gather
from .ops.collectives import all_to_all as all_to_all
from .ops.collectives import ppermute as ppermute
from .ops.collectives import psum as psum
from .ops.collectives import psum_scatter as psum_scatter
from .ops.collectives import ragged_all_to_all as ragged_all_to_all
from .ops.collectives import reduce_scatter as reduce_scatter
