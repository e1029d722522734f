"""Step 2: attention; scores leave PSUM in many small moves, then in few large ones.

    python -m examples.flash_attention_story.step2_attention

For 128 queries the scores of 4096 keys come out of PSUM, scaled, with their maxima: in 16 moves of
256 columns or in 4 of 1024. VectorE needs a cycle a column either way, but after each move it reads
out the maximum it found, which takes as long as 64 columns. On Trainium2 VectorE is what attention
waits for, and 12 moves less are that much less to wait for.
"""

from dataclasses import replace
from functools import cache, partial

from pallas_trn3.kernels.flash_attention import choices_for, flash_attention

from .shape import FEATURES, HEADS, KV_HEADS, TOKENS, TRN2, Step, array, timed

QUERIES = array(1, TOKENS, HEADS, FEATURES)
KEYS = array(1, TOKENS, KV_HEADS, FEATURES)

LARGE = choices_for(TRN2)
SMALL = replace(LARGE, move=256)

small_moves = partial(flash_attention, chip=TRN2, choices=SMALL)
large_moves = partial(flash_attention, chip=TRN2, choices=LARGE)


@cache
def step() -> Step:
    """Attention with both."""
    before, after = (timed(f, QUERIES, KEYS, KEYS) for f in (small_moves, large_moves))
    return Step("attention: small moves out of PSUM, then large ones", before, after, said=1.13)


if __name__ == "__main__":
    from .report import printed

    printed(step())
