"""Attacks of torchattacks. Source: Kim 2020, arXiv:2010.01950.

Settings have the names and defaults of the class there; stride is the step (alpha) as a share of the radius.
"""

from inspect import signature
from types import ModuleType

import torch
from torch import Tensor, nn

from firstline.attacks.adapters.peer import NORMS, Call, Library, Peer, Row, adapt


class Torchattacks(Peer):
    """How torchattacks is called."""

    # It pins an old version of requests, which it uses for downloads alone; all else that it needs is here.
    library = Library("torchattacks", "torchattacks", "torchattacks", "pip install --no-deps torchattacks")

    def craft(self, library: ModuleType, model: nn.Module, x: Tensor, call: Call) -> Tensor:
        """Return what the attack makes of images x and their labels."""
        cls = getattr(library, self.row.peer)
        settings, known = call.settings, signature(cls).parameters
        if "stride" in settings:
            settings["alpha"] = settings.pop("stride") * call.eps
        more = {
            "eps": call.eps,
            "norm": NORMS[call.norm],
            "n_classes": call.classes,
            "seed": torch.initial_seed() % 2**31,
        }
        settings |= {name: value for name, value in more.items() if name in known}
        found: Tensor = cls(model, **settings)(x, call.y)
        return found


adapt(
    Torchattacks,
    [
        Row("fgsm", "FGSM", ("linf",), "One step along the sign"),
        Row("bim", "BIM", ("linf",), "Steps from the input itself", {"stride": 0.25, "steps": 10}),
        Row(
            "mi-fgsm", "MIFGSM", ("linf",), "Steps with momentum", {"stride": 0.25, "steps": 10, "decay": 1.0}
        ),
        Row(
            "pgd",
            "PGD",
            ("linf",),
            "Steps from a random start",
            {"stride": 0.25, "steps": 10, "random_start": True},
        ),
        Row(
            "pgd-l2",
            "PGDL2",
            ("l2",),
            "Steps from a random start",
            {"stride": 0.2, "steps": 10, "random_start": True},
        ),
        Row(
            "eot-pgd",
            "EOTPGD",
            ("linf",),
            "Steps along averaged gradients",
            {"stride": 0.25, "steps": 10, "eot_iter": 2, "random_start": True},
        ),
        Row(
            "apgd",
            "APGD",
            ("linf", "l2"),
            "AutoPGD",
            {"steps": 10, "n_restarts": 1, "loss": "ce", "eot_iter": 1, "rho": 0.75},
        ),
        Row(
            "fab",
            "FAB",
            ("linf", "l2"),
            "Fast adaptive boundary",
            {"steps": 10, "n_restarts": 1, "alpha_max": 0.1, "eta": 1.05, "beta": 0.9},
        ),
        Row(
            "square",
            "Square",
            ("linf", "l2"),
            "Random squares on scores",
            {"n_queries": 5000, "p_init": 0.8, "loss": "margin"},
            needs="scores",
            queries="n_queries",
        ),
        Row(
            "cw",
            "CW",
            ("l2",),
            "Carlini & Wagner, l2",
            {"c": 1.0, "kappa": 0.0, "steps": 50, "lr": 0.01},
            closest=True,
        ),
        Row(
            "deepfool",
            "DeepFool",
            ("l2",),
            "Steps across linearised boundaries",
            {"steps": 50, "overshoot": 0.02},
            closest=True,
            batch=1,
        ),
    ],
)
