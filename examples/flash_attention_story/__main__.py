"""All steps, and their pictures.

python -m examples.flash_attention_story [--pictures] [--perfetto DIRECTORY]
"""

import argparse
from pathlib import Path

from jax_trn3.profiler import save

from . import step1_qkv, step2_attention, step3_collectives, step4_whole
from .picture import picture
from .report import printed, printed_gather, printed_layer
from .shape import TRN2, TRN3

PICTURES = Path(__file__).parent / "pictures"


def main() -> None:
    """Runs the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", action="store_true", help=f"draw {PICTURES.name}/*.svg anew")
    parser.add_argument("--perfetto", type=Path, help="a directory for traces of all kernels")
    options = parser.parse_args()
    qkv, attention = step1_qkv.step(), step2_attention.step()
    printed(qkv)
    printed(attention)
    printed_gather(step3_collectives.gather())
    for chip in (TRN2, TRN3):
        printed_layer(chip.name, step4_whole.layer(chip))
    kernels = {
        "qkv_bfloat16": qkv.before,
        "qkv_float8": qkv.after,
        "attention_small_moves": attention.before,
        "attention_large_moves": attention.after,
        "attention_trainium3": step4_whole.attention(TRN3),
    }
    for name, timeline in kernels.items():
        if options.pictures:
            PICTURES.mkdir(exist_ok=True)
            title = f"{name.replace('_', ' ')}, {timeline.chip.name}"
            (PICTURES / f"{name}.svg").write_text(picture(timeline, title))
        if options.perfetto:
            options.perfetto.mkdir(parents=True, exist_ok=True)
            save(timeline, options.perfetto / f"{name}.pftrace")


if __name__ == "__main__":
    main()
