"""AutoAttack, as installed from PyPI. Source: Croce & Hein 2020, arXiv:2003.01690."""

from types import ModuleType

import torch
from torch import Tensor, nn

from firstline.attacks.adapters.peer import NORMS, Call, Library, Peer, Row, adapt

FEW = ["apgd-ce", "fab", "square"]  # what is defined for fewer than four classes


class AutoAttack(Peer):
    """The ensemble; with fewer than four classes without the targeted attacks, which are not defined there."""

    library = Library("autoattack", "pyautoattack", "AutoAttack", "pip install 'firstline[peers]'")

    def craft(self, library: ModuleType, model: nn.Module, x: Tensor, call: Call) -> Tensor:
        """Return the ensemble's points."""
        few = call.classes < 4
        ensemble = library.AutoAttack(
            model,
            norm=NORMS[call.norm],
            eps=call.eps,
            device=x.device,
            seed=torch.initial_seed() % 2**31,
            version="custom" if few else "standard",
            attacks=FEW if few else None,
        )
        for part in (ensemble.apgd_targeted, ensemble.fab):
            part.n_target_classes = min(part.n_target_classes, call.classes - 1)
        found: Tensor = ensemble.run_standard_evaluation(x, call.y, batch_size=len(x))[0]
        return found


adapt(
    AutoAttack,
    [Row("standard", "AutoAttack", ("linf", "l2", "l1"), "The standard ensemble")],
)
