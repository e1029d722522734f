"""What the steps print."""

from .shape import Step, utilisation
from .step3_collectives import Gather


def printed(step: Step) -> None:
    """A step's times."""
    for when, timeline in (("before", step.before), ("after", step.after)):
        print(
            f"  {when:7s} {timeline.active_ps / 1e6:8.1f} us, TensorE {utilisation(timeline):.0%}"
        )
    print(f"{step.name}: {step.faster:.2f} times as fast (the talk: {step.said:g})")


def printed_gather(gather: Gather) -> None:
    """The all-gather's times."""
    store, through, load = (ps / 1e6 for ps in (gather.store, gather.through_hbm, gather.load))
    print(f"  before  {gather.before / 1e6:8.1f} us: {store:.1f} + {through:.1f} + {load:.1f}")
    print(f"  after   {gather.between_sbufs / 1e6:8.1f} us")
    print(f"all-gather of 32 MiB on a chip: {gather.faster:.2f} times as fast (the talk: 4)")


def printed_layer(name: str, parts: dict[str, tuple[float, float]]) -> None:
    """A layer's parts."""
    print(name)
    for part, (us, share) in parts.items():
        print(f"  {part:10s} {us:8.1f} us, TensorE {share:.0%}")
