"""Programs that cannot run are errors that name the instruction, its origin, the numbers: at once."""

import pytest

from jax_trn3.hardware import TRAINIUM2
from jax_trn3.isa import IllegalInstruction, Origin, Semaphore, Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.tensor import nc_matmul
from jax_trn3.isa.vector_move import tensor_copy
from jax_trn3.simulator import IllegalProgram, loop, program, simulate

HERE = Origin("kernel.py", 42, "my_kernel")
SOURCE = Tile("source", "hbm", (128, 256), "bfloat16", given=True)


def sbuf(name: str = "x", slots: int = 1) -> Tile:
    return Tile(name, "sbuf", (128, 256), "bfloat16", slots)


def test_a_rule_of_the_table() -> None:
    psum = Tile("p", "psum", (128, 256), "float32", given=True)
    wrong = tensor_copy(sbuf(), psum, engine="gpsimd", origin=HERE)
    with pytest.raises(
        IllegalInstruction, match=r"tensor_copy from my_kernel at kernel.py:42 .*psum"
    ):
        simulate(program("p", [wrong]))


def test_an_instruction_of_a_later_generation() -> None:
    from jax_trn3.isa.vector_reduce import exponential

    ones = Tile("ones", "sbuf", (128, 256), "bfloat16", given=True)
    late = exponential(sbuf(), ones)
    with pytest.raises(IllegalInstruction, match=r"NeuronCore-v4 is the first to have it"):
        simulate(program("p", [late]), TRAINIUM2)


@pytest.mark.parametrize("reader", ["transfer", "copy", "matmul"])
def test_reading_what_nobody_wrote(reader: str) -> None:
    x = sbuf("x")
    line = {
        "transfer": dma_copy(Tile("out", "hbm", (128, 256), "bfloat16"), x, origin=HERE),
        "copy": tensor_copy(sbuf("y"), x, origin=HERE),
        "matmul": nc_matmul(Tile("p", "psum", (128, 256), "float32"), x[:, 0:128], x, origin=HERE),
    }[reader]
    with pytest.raises(
        IllegalProgram, match=r"from my_kernel at kernel.py:42 reads x, which nobody"
    ):
        simulate(program("p", [line]))


def test_reading_a_slot_that_a_loop_has_not_written_yet() -> None:
    ring, out = sbuf("ring", slots=3), sbuf("out")
    body = lambda i: [dma_copy(ring[i], SOURCE), tensor_copy(out, ring[i + 1], origin=HERE)]  # noqa: E731
    with pytest.raises(IllegalProgram, match=r"kernel.py:42 reads ring, which nobody wrote"):
        simulate(program("p", [loop(4, body)]))


def test_waiting_for_what_nobody_signals() -> None:
    ready = Semaphore("ready")
    lines = [
        dma_copy(sbuf("x"), SOURCE, signal=((ready, 1),)),
        tensor_copy(sbuf("y"), sbuf("x"), wait=((ready, 2),), origin=HERE),
    ]
    with pytest.raises(
        IllegalProgram,
        match=r"kernel.py:42 waits for 2 of semaphore ready, .* only 1 were signalled",
    ):
        simulate(program("p", lines))


def test_a_wait_takes_what_it_waited_for() -> None:
    ready = Semaphore("ready")
    load = dma_copy(sbuf("x"), SOURCE, signal=((ready, 1),))
    use = tensor_copy(sbuf("y"), sbuf("x"), wait=((ready, 1),))
    simulate(program("p", [load, use]))
    with pytest.raises(IllegalProgram, match=r"only 0 were signalled and not taken"):
        simulate(program("p", [load, use, use]))


def test_a_semaphore_left_over() -> None:
    ready = Semaphore("ready")
    load = dma_copy(sbuf("x"), SOURCE, signal=((ready, 3),))
    with pytest.raises(
        IllegalProgram, match=r"ends with semaphores that are not 0: \{'ready': 3\}"
    ):
        simulate(program("p", [load]))


def test_a_semaphore_orders_what_no_tile_does() -> None:
    go = Semaphore("go")
    first = dma_copy(sbuf("x"), SOURCE, signal=((go, 1),))
    ones = Tile("ones", "sbuf", (128, 256), "bfloat16", given=True)
    rows = simulate(program("p", [first, tensor_copy(sbuf("y"), ones, wait=((go, 1),))])).expand()
    assert rows[1, 1] == rows[0, 3]
    assert rows[1, 4] == 0


def test_semaphores_in_a_loop_are_extrapolated() -> None:
    go, back = Semaphore("go"), Semaphore("back")
    ring, out = sbuf("ring", slots=2), sbuf("out", slots=2)

    def body(i):
        return [
            dma_copy(ring[i], SOURCE, signal=((go, 1),), wait=((back, 1),)),
            tensor_copy(out[i], ring[i], wait=((go, 1),), signal=((back, 1),)),
        ]

    start = [dma_copy(ring[k], SOURCE, engine="dma:scalar", signal=((back, 1),)) for k in range(2)]
    end = [tensor_copy(out[k], ring[k], wait=((back, 1),)) for k in range(2)]
    text = program("p", [*start, loop(500, body), *end])
    quick, full = simulate(text), simulate(text, extrapolate=False)
    assert quick.repeats
    assert (quick.expand() == full.expand()).all()


def test_slots_and_slices_outside_a_tile() -> None:
    with pytest.raises(IndexError, match=r"tile x: .* outside dimension 1 of size 256"):
        sbuf()[:, 0:512]
    with pytest.raises(TypeError, match=r"choose one, tile\[i\]"):
        sbuf(slots=2)[:, 0:16]
    with pytest.raises(ValueError, match=r"3 slots asked for, it has 2"):
        sbuf(slots=2).run(0, 3)
