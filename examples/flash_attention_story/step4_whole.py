"""Step 4: the same attention on Trainium2 and Trainium3, and the whole layer.

    python -m examples.flash_attention_story.step4_whole

What changes is who does what (`choices_for`): on Trainium3 VectorE takes exponentials at four times
the rate, ScalarE finds maxima too, and TensorE transposes behind its products.
"""

from functools import cache, partial

from jax_trn3.hardware import Chip
from jax_trn3.simulator import Timeline
from pallas_trn3.kernels.flash_attention import choices_for, flash_attention

from . import step1_qkv
from .shape import TRN2, TRN3, timed, utilisation
from .step2_attention import KEYS, QUERIES
from .step3_collectives import gather

SAID = {"Trainium2": 0.60, "Trainium3": 0.90}
"""Shares of TensorE's time that the talk names: about 60 %, more than 90 %."""


@cache
def attention(chip: Chip) -> Timeline:
    """Attention as it is best on a chip."""
    function = partial(flash_attention, chip=chip, choices=choices_for(chip))
    return timed(function, QUERIES, KEYS, KEYS, chip=chip)


def layer(chip: Chip) -> dict[str, tuple[float, float]]:
    """Parts of the layer after all steps: (us, TensorE's utilisation)."""
    server = "trn2-ultraserver" if chip is TRN2 else "trn3-sled"
    qkv, attended = step1_qkv.step(chip).after, attention(chip)
    gathered = gather(server).between_sbufs
    parts = {
        "gather": (gathered / 1e6, 0.0),
        "QKV": (qkv.active_ps / 1e6, utilisation(qkv)),
        "attention": (attended.active_ps / 1e6, utilisation(attended)),
    }
    time = sum(us for us, _ in parts.values())
    parts["together"] = (time, sum(us * share for us, share in parts.values()) / time)
    return parts


if __name__ == "__main__":
    from .report import printed_layer

    for chip in (TRN2, TRN3):
        printed_layer(chip.name, layer(chip))
