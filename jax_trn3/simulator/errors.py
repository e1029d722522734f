"""What is wrong with a program as a whole. What is wrong with one instruction: `isa.check`."""


class IllegalProgram(ValueError):
    """A program that cannot run: it reads what nobody wrote, waits for what nobody signals, or
    keeps two tiles in one place."""


class DoesNotFit(IllegalProgram):
    """A program that needs more of a memory than there is."""
