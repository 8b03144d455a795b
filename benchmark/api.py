"""All that a plugin needs: `from firstline.benchmark.api import Defense, defense, ...`."""

from firstline.benchmark.core.adversarial import AdversarialTrainer
from firstline.benchmark.core.ascent import Slope, ascend, module_slope
from firstline.benchmark.core.contracts import (
    Architecture,
    Attack,
    Context,
    Defense,
    Evasion,
    Extraction,
    Incident,
    Inversion,
    Membership,
    MinimalNorm,
    PoisonedData,
    Poisoning,
    Task,
    initialise,
)
from firstline.benchmark.core.data import Data, InputSpace, Splits
from firstline.benchmark.core.errors import DataProblem, FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.losses import cross_entropies, dlr, margins
from firstline.benchmark.core.norms import distance
from firstline.benchmark.core.packages import require
from firstline.benchmark.core.privacy import PrivateTraining
from firstline.benchmark.core.registry import attack, defense, task
from firstline.benchmark.core.rng import Streams, isolated
from firstline.benchmark.core.system import INVALID, REFUSED, Bare, Certificate, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Recipe, train

__all__ = [
    "INVALID",
    "REFUSED",
    "AdversarialTrainer",
    "Architecture",
    "Attack",
    "Bare",
    "Certificate",
    "Context",
    "Data",
    "DataProblem",
    "Defense",
    "Evasion",
    "Extraction",
    "FirstlineError",
    "Incident",
    "InputSpace",
    "Inversion",
    "Membership",
    "MinimalNorm",
    "PoisonedData",
    "Poisoning",
    "PrivateTraining",
    "Recipe",
    "Region",
    "Response",
    "Slope",
    "Splits",
    "Streams",
    "System",
    "Target",
    "Task",
    "Threat",
    "ascend",
    "attack",
    "cross_entropies",
    "defense",
    "distance",
    "dlr",
    "initialise",
    "isolated",
    "margins",
    "module_slope",
    "require",
    "task",
    "train",
]
