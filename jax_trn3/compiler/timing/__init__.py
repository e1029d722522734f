"""The time of a program: partitioned, read into plain data, tiled into engine instructions, timed.

`partition.py` (Shardy) and `read.py` make a `DeviceProgram` (`graph.py`) of a StableHLO module;
`fusion.py` cuts it into groups; each group's rule (`rules/`) makes an instruction program of it,
which the simulator times (`cost.py`); `schedule.py` puts the groups' times together, `residency.py`
says what lies in HBM meanwhile.
"""
