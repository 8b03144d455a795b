"""Attacks of Foolbox. Source: Rauber et al. 2020, Foolbox Native, Journal of Open Source Software 5(53), 2607.

Settings have the names and defaults of the class there, except for shorter runs where the summary says so.
"""

from types import ModuleType

from torch import Tensor, nn

from firstline.attacks.adapters.peer import Call, Library, Peer, Row, adapt


class Foolbox(Peer):
    """How Foolbox is called."""

    library = Library("foolbox", "foolbox", "Foolbox", "pip install 'firstline[peers]'")

    def craft(self, library: ModuleType, model: nn.Module, x: Tensor, call: Call) -> Tensor:
        """Return the library's points: within the radius, or the closest."""
        settings = call.settings
        if self.row.peer == "HopSkipJumpAttack":
            settings["constraint"] = call.norm
        attack = getattr(library.attacks, self.row.peer)(**settings)
        wrapped = library.PyTorchModel(model, bounds=(0, 1), device=x.device)
        free, clipped, _ = attack(wrapped, x, call.y, epsilons=call.eps)
        found: Tensor = free if call.eps is None else clipped
        return found


_PGD = {"rel_stepsize": 0.025, "steps": 50, "random_start": True}
_BIM = {"rel_stepsize": 0.2, "steps": 10, "random_start": False}
_FMN = {"steps": 100, "max_stepsize": 1.0, "gamma": 0.05}

adapt(
    Foolbox,
    [
        Row(
            "linf-fgsm",
            "LinfFastGradientAttack",
            ("linf",),
            "One step along the sign",
            {"random_start": False},
        ),
        Row(
            "l2-fgm", "L2FastGradientAttack", ("l2",), "One step along the gradient", {"random_start": False}
        ),
        Row("linf-bim", "LinfBasicIterativeAttack", ("linf",), "Steps from the input itself", _BIM),
        Row("l2-bim", "L2BasicIterativeAttack", ("l2",), "Steps from the input itself", _BIM),
        Row(
            "linf-mi-fgsm",
            "LinfMomentumIterativeFastGradientMethod",
            ("linf",),
            "Steps with momentum",
            {"momentum": 1.0, "rel_stepsize": 0.2, "steps": 10, "random_start": False},
        ),
        Row(
            "linf-pgd",
            "LinfProjectedGradientDescentAttack",
            ("linf",),
            "Steps from a random start",
            {"rel_stepsize": 0.01 / 0.3, "steps": 40, "random_start": True},
        ),
        Row("l2-pgd", "L2ProjectedGradientDescentAttack", ("l2",), "Steps from a random start", _PGD),
        Row("l1-pgd", "L1ProjectedGradientDescentAttack", ("l1",), "Steps from a random start", _PGD),
        Row(
            "linf-adam-pgd",
            "LinfAdamProjectedGradientDescentAttack",
            ("linf",),
            "Steps by Adam",
            {"rel_stepsize": 0.025, "steps": 50, "random_start": True},
        ),
        Row(
            "sparse-l1",
            "SparseL1DescentAttack",
            ("l1",),
            "Steps along the largest slopes",
            {"quantile": 0.99, "rel_stepsize": 0.2, "steps": 10, "random_start": False},
        ),
        Row(
            "ddn",
            "DDNAttack",
            ("l2",),
            "Decoupled direction and norm",
            {"init_epsilon": 1.0, "steps": 100, "gamma": 0.05},
            closest=True,
        ),
        Row("l0-fmn", "L0FMNAttack", ("l0",), "Fast minimum norm", _FMN, closest=True),
        Row("l1-fmn", "L1FMNAttack", ("l1",), "Fast minimum norm", _FMN, closest=True),
        Row("l2-fmn", "L2FMNAttack", ("l2",), "Fast minimum norm", _FMN, closest=True),
        Row("linf-fmn", "LInfFMNAttack", ("linf",), "Fast minimum norm", _FMN, closest=True),
        Row(
            "l2-deepfool",
            "L2DeepFoolAttack",
            ("l2",),
            "Steps across linearised boundaries",
            {"steps": 50, "candidates": 10, "overshoot": 0.02},
            closest=True,
        ),
        Row(
            "linf-deepfool",
            "LinfDeepFoolAttack",
            ("linf",),
            "Steps across linearised boundaries",
            {"steps": 50, "candidates": 10, "overshoot": 0.02},
            closest=True,
        ),
        Row(
            "l2-cw",
            "L2CarliniWagnerAttack",
            ("l2",),
            "Carlini & Wagner, with fewer steps than by default",
            {
                "binary_search_steps": 9,
                "steps": 1000,
                "stepsize": 0.01,
                "confidence": 0.0,
                "initial_const": 1e-3,
            },
            closest=True,
        ),
        Row(
            "ead",
            "EADAttack",
            ("l1",),
            "Elastic net, with fewer steps than by default",
            {
                "binary_search_steps": 9,
                "steps": 1000,
                "initial_stepsize": 0.01,
                "confidence": 0.0,
                "initial_const": 1e-3,
                "regularization": 0.01,
                "decision_rule": "L1",
            },
            closest=True,
        ),
        Row(
            "hop-skip-jump",
            "HopSkipJumpAttack",
            ("linf", "l2"),
            "Boundary walk on labels, with fewer steps than by default",
            {"steps": 16, "initial_gradient_eval_steps": 100, "max_gradient_eval_steps": 10000},
            needs="labels",
            closest=True,
        ),
    ],
)
