"""Trees that are stolen leaf by leaf, and what stops that."""

import pytest
import torch
from torch import Tensor

from firstline.attacks.extraction.path_finding import Boxes, Leaf, PathFinding
from firstline.benchmark.core.data import InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.defenses.output_rounding import RoundedOutput

SPACE = InputSpace(shape=(3,), low=(0.0, -1.0, 0.0), high=(1.0, 1.0, 9.0), grid=(0.0, 0.0, 1.0))
SHARES = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.35, 0.65]])


class Tree(System):
    """Splits the first feature at 0.3, its left side at 0 in the second and its right side at 4 in the third."""

    def __init__(self, shares: Tensor = SHARES) -> None:
        super().__init__()
        self.shares = shares

    def leaf(self, x: Tensor) -> Tensor:
        left, right = 0 + (x[:, 1] > 0).long(), 2 + (x[:, 2] > 4).long()
        return torch.where(x[:, 0] > 0.3, right, left)

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(self.shares[self.leaf(x)].log())


def stolen(system: System, queries: int = 10_000, **settings) -> tuple[Boxes, Target]:
    threat = Threat.parse(f"extraction/black/scores:{queries}")
    target = Target(system.eval(), threat, space=SPACE, classes=2, rng=Streams(0))
    copy = PathFinding(**settings).extract(target, None, threat, Streams(0))
    assert isinstance(copy, Boxes)
    return copy, target


def somewhere(count: int = 2000) -> Tensor:
    return SPACE.round(SPACE.uniform(torch.zeros(0), count, torch.Generator().manual_seed(1)))


def test_every_leaf_is_found_with_its_faces():
    copy, target = stolen(Tree())
    assert target.notes["leaves"] == target.notes["answers"] == 4
    found = {
        round(float(row[0].exp()), 2): (low.tolist(), high.tolist())
        for row, low, high in zip(copy.logits, copy.low, copy.high, strict=True)
    }
    about = lambda *values: pytest.approx(values, abs=1e-4)  # noqa: E731
    assert found[0.9] == (about(0, -1, 0), about(0.3, 0, 9))
    assert found[0.2] == (about(0, 0, 0), about(0.3, 1, 9))
    assert found[0.6] == (about(0.3, -1, 0), about(1, 1, 4.5))  # half-way between neighbours on the grid
    assert found[0.35] == (about(0.3, -1, 4.5), about(1, 1, 9))
    x = somewhere()
    assert torch.equal(copy(x), Tree().respond(x, torch.Generator()).logits.double())


def test_a_threshold_that_inputs_lie_on_is_found_to_the_last_bit():
    copy, _ = stolen(Tree())
    x = torch.tensor([[0.3, -0.5, 0.0], [0.1, 0.0, 0.0]]).repeat(2, 1)
    x[2, 0] = torch.nextafter(x[2, 0], torch.tensor(1.0))
    x[3, 1] = 1e-6
    assert torch.equal(copy(x), Tree().respond(x, torch.Generator()).logits.double())
    assert len(copy(x).unique(dim=0)) == 3


def test_a_leaf_costs_two_queries_for_a_feature_and_some_for_a_face():
    _, target = stolen(Tree(), eps=1e-3)
    assert target.notes["leaves"] == 4
    assert int(target.queries.sum()) <= 1 + 4 * (2 * 3 + 2 * 11)


def test_questions_are_inputs_of_the_space():
    asked: list[Tensor] = []

    class Listens(Tree):
        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            asked.append(x.clone())
            return super().respond(x, rng)

    stolen(Listens())
    everything = torch.cat(asked)
    assert torch.equal(everything, SPACE.round(everything))


def test_when_the_budget_ends_the_leaves_that_are_known_answer():
    whole, target = stolen(Tree())
    part, spent = stolen(Tree(), queries=int(target.queries.sum()) - 1)
    assert len(whole.logits) == 4
    assert part.low.eq(part.high).all(1).any()  # a point that lies beyond a face
    assert int(spent.queries.sum()) < int(target.queries.sum())
    assert torch.isfinite(part(somewhere())).all()


@pytest.mark.parametrize("queries", [1, 5])
def test_a_budget_for_no_leaf_answers_what_was_told_first(queries):
    copy, target = stolen(Tree(), queries=queries)
    assert int(target.queries.sum()) <= queries
    assert len(copy(somewhere()).unique(dim=0)) == 1


def test_leaves_that_tell_the_same_are_lost():
    same = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.9001, 0.0999], [0.2001, 0.7999]])
    exact, _ = stolen(Tree(same))
    assert torch.equal(exact(somewhere()).argmax(1), Tree(same).leaf(somewhere()) % 2)
    rounded = RoundedOutput(Tree(same), decimals=1).eval()
    blurred, target = stolen(rounded)
    x = somewhere()
    assert target.notes["answers"] == 2
    assert not torch.equal(blurred(x).argmax(1), rounded.respond(x, torch.Generator()).labels)


def test_systems_that_refuse_have_no_leaf():
    class Refuses(Tree):
        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            return Response(torch.full((len(x), 2), torch.nan))

    with pytest.raises(FirstlineError, match=r"no query was answered .*raise its budget"):
        stolen(Refuses())


def test_one_leaf_is_the_whole_space():
    _, target = stolen(Tree(SHARES[:1].expand(4, 2)))
    assert target.notes["leaves"] == 1
    assert int(target.queries.sum()) == 1 + 2 * 3


def test_outside_all_boxes_the_nearest_answers_and_of_two_the_smaller():
    low, high = torch.zeros(1), torch.ones(1)
    copy = Boxes(
        [
            Leaf(low.double(), 4 * high.double(), (0.0, 1.0)),
            Leaf(low.double(), high.double(), (1.0, 0.0)),
        ]
    )
    assert copy(torch.tensor([[0.5], [2.0], [9.0], [-1.0]])).argmax(1).tolist() == [0, 1, 1, 0]
