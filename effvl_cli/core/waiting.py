"""How idle threads wait. Imports nothing heavy: it has to come before torch."""

import os

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Environment variables of GCC's OpenMP, which torch ships, and of Intel's."""


def wait_passively() -> None:
    """Let OpenMP threads sleep while they wait for one another, unless the environment says otherwise.

    By default they spin. On cores shared with other programs, a thread then spins for as long as the other one is not
    scheduled, in each of the thousands of small kernels of a step: small networks took 7 to 13 times the CPU time. The
    results are the same. The libraries read the environment when they are loaded, so this comes before torch.
    """
    for name, value in PASSIVE.items():
        os.environ.setdefault(name, value)
