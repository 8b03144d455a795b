"""Attacks of the Adversarial Robustness Toolbox. Source: Nicolae et al. 2018, arXiv:1807.01069.

Settings have the names of the class there. Its step lengths in input units are made for one radius: stride
is the step (eps_step) as a share of the radius.
"""

from importlib import import_module
from inspect import signature
from types import ModuleType

import torch
from torch import Tensor, nn

from firstline.attacks.adapters.peer import Call, Library, Peer, Row, adapt

NORMS = {"linf": float("inf"), "l2": 2, "l1": 1}


class Toolbox(Peer):
    """How ART is called."""

    library = Library("art", "art", "ART", "pip install 'firstline[peers]'")

    def craft(self, library: ModuleType, model: nn.Module, x: Tensor, call: Call) -> Tensor:
        """Return what the attack generates from images x and their labels."""
        estimator = import_module("art.estimators.classification").PyTorchClassifier(
            model=model,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(x.shape[1:]),
            nb_classes=call.classes,
            clip_values=(0.0, 1.0),
            device_type="cpu" if x.device.type == "cpu" else "gpu",
        )
        cls = getattr(import_module("art.attacks.evasion"), self.row.peer)
        settings, known = call.settings, signature(cls.__init__).parameters
        if call.eps is not None:
            settings["eps"] = call.eps
        if "stride" in settings:
            settings["eps_step"] = settings.pop("stride") * call.eps
        if "norm" in known:
            settings["norm"] = NORMS[call.norm]
        if "verbose" in known:
            settings["verbose"] = False
        if "batch_size" in known:
            settings["batch_size"] = len(x)
        found = cls(estimator, **settings).generate(x=x.cpu().numpy(), y=call.y.cpu().numpy())
        return torch.from_numpy(found)


adapt(
    Toolbox,
    [
        Row(
            "fgm",
            "FastGradientMethod",
            ("linf", "l2", "l1"),
            "One step of the whole radius",
            {"num_random_init": 0},
        ),
        Row(
            "bim",
            "BasicIterativeMethod",
            ("linf",),
            "Steps from the input itself",
            {"stride": 0.1, "max_iter": 100},
        ),
        Row(
            "mim",
            "MomentumIterativeMethod",
            ("linf", "l2", "l1"),
            "Steps with momentum",
            {"stride": 0.1, "decay": 1.0, "max_iter": 100},
        ),
        Row(
            "pgd",
            "ProjectedGradientDescent",
            ("linf", "l2", "l1"),
            "Steps from a random start",
            {"stride": 0.1, "max_iter": 100, "num_random_init": 1},
        ),
        Row(
            "apgd",
            "AutoProjectedGradientDescent",
            ("linf", "l2", "l1"),
            "AutoPGD",
            {"stride": 2.0, "max_iter": 100, "nb_random_init": 5, "loss_type": "cross_entropy"},
        ),
        Row(
            "square",
            "SquareAttack",
            ("linf", "l2"),
            "Random squares on scores",
            {"max_iter": 1000, "p_init": 0.8},
            needs="scores",
            queries="max_iter",
            cost=3,
        ),
        Row(
            "cw-l2",
            "CarliniL2Method",
            ("l2",),
            "Carlini & Wagner, l2",
            {
                "confidence": 0.0,
                "learning_rate": 0.01,
                "binary_search_steps": 10,
                "max_iter": 10,
                "initial_const": 0.01,
            },
            closest=True,
        ),
        Row(
            "elastic-net",
            "ElasticNet",
            ("l1",),
            "Elastic net",
            {
                "confidence": 0.0,
                "learning_rate": 0.01,
                "binary_search_steps": 9,
                "max_iter": 100,
                "beta": 0.001,
                "initial_const": 0.001,
                "decision_rule": "L1",
            },
            closest=True,
        ),
        Row(
            "deepfool",
            "DeepFool",
            ("l2",),
            "Steps across linearised boundaries",
            {"max_iter": 100, "epsilon": 0.02, "nb_grads": 10},
            closest=True,
        ),
        Row(
            "hop-skip-jump",
            "HopSkipJump",
            ("linf", "l2"),
            "Boundary walk on labels, with fewer steps than by default",
            {"max_iter": 10, "max_eval": 10000, "init_eval": 100, "init_size": 100},
            needs="labels",
            closest=True,
            batch=1,
        ),
    ],
)
