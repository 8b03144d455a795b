"""Adult with the marital status as the secret: what attribute inference is after.

Source: Mehnaz et al. 2022, arXiv:2201.09370, who infer it from models of the income; the data are those of `adult`.
"""

from dataclasses import dataclass

from firstline.benchmark.core.registry import task
from firstline.tasks.adult import Adult


@task("adult-attribute")
@dataclass(frozen=True)
class AdultAttribute(Adult):
    """The rows, the network and the class of `adult`; whether somebody is married, and how it ended, is the secret."""

    secret = "marital-status"
