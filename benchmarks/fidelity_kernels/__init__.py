"""Published kernels as instruction programs: what `benchmarks/fidelity.py` simulates.

They are written from what is published about them (each says where), to be read as examples of how
a program is written. What a compiler decided and nobody published, each states as assumed.
"""
