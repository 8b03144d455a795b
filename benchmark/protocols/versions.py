"""The vectors that can be measured, and the version of each protocol: it rises when its numbers change.

Apart from the protocols so that planning needs no torch.
"""

VERSIONS = {"evasion": 4, "poisoning": 2, "membership": 4, "extraction": 1, "inversion": 1}
STREAM = 1
