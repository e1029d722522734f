"""A program on a chip: what it takes, instruction by instruction."""

from jax_trn3.hardware import TRAINIUM3, Chip
from jax_trn3.isa import check

from .allocation import allocate
from .cells import Cells
from .clock import Clock, Deadlock, UnwrittenRead
from .decode import Decoder
from .errors import IllegalProgram
from .program import Program
from .repetition import Run
from .timeline import Timeline, timeline


def simulate(
    program: Program, chip: Chip = TRAINIUM3, *, active_cores: int = 1, extrapolate: bool = True
) -> Timeline:
    """Runs a program on one core of a chip.

    **Arguments:**

    - `program`: What to run. Its order is a possible order of execution.
    - `chip`: The machine.
    - `active_cores`: Cores that use the same HBM stack at the same time, this one included; each
      gets its share of the bandwidth.
    - `extrapolate`: Whether loops stop being simulated once they repeat. The result is the same.

    **Returns:** The timeline, in integer picoseconds.

    **Raises:** `IllegalInstruction` for an instruction that the core does not have, or not so;
    `DoesNotFit` for a program that needs more SBUF or PSUM than there is; `IllegalProgram` for one
    that reads what nobody wrote or waits for what nobody signals.
    """
    core = chip.core
    for instruction in program.instructions():
        check(instruction, core)
    program = allocate(program, core)
    cells = Cells((access for i in program.instructions() for _, access in i.operands), core)
    bandwidth = chip.hbm_bandwidth_bytes_per_s / chip.hbm_stacks / active_cores
    decoder = Decoder(chip, bandwidth, cells)
    body = decoder.body(program.body)
    tensor = core.tensor
    clock = Clock(
        [tile.given for tile in cells.tiles],
        float(tensor.throttle_speed),
        int(tensor.throttle_ramp_ns * 1000),
    )
    run = Run(decoder, clock, extrapolate)
    try:
        run.body(body)
        clock.finish()
    except UnwrittenRead as error:
        number, cell = error.args
        raise IllegalProgram(
            f"{decoder.instructions[number]} reads {cells.tiles[cell].name}, which nobody wrote; "
            "write it first, or say given=True of a tile that has values from the start"
        ) from None
    except Deadlock as error:
        number, semaphore, wanted, got = error.args
        name = list(decoder.semaphores)[semaphore].name
        raise IllegalProgram(
            f"{decoder.instructions[number]} waits for {wanted} of semaphore {name}, but before it "
            f"only {got} were signalled and not taken; it would wait for ever"
        ) from None
    left = {
        semaphore.name: sum(count for count, *_ in clock.signals.get(number, ()))
        for semaphore, number in decoder.semaphores.items()
    }
    if any(left.values()):
        raise IllegalProgram(f"{program.name} ends with semaphores that are not 0: {left}")
    return timeline(program, chip, decoder, clock.events, run.repeats)
