"""No process of a run outlives the run, not even one that is stuck in a plugin's endless loop."""

import ctypes
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def die_with_parent() -> None:
    """Have the system kill this process when its parent ends. Only Linux can; elsewhere nothing is done."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
