"""Auto-PGD against the slow and obvious algorithm, mathematics, and the authors' own where it is installed."""

import math

import pytest
import torch
from torch import Tensor, nn

from firstline.attacks.evasion.apgd import APGD, maximise
from firstline.attacks.evasion.apgd_targeted import APGDTargeted
from firstline.attacks.evasion.pgd import PGD
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.ascent import Slope
from firstline.benchmark.core.contracts import Evasion, initialise
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.losses import cross_entropies, dlr
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat

NORMS = [("linf", 0.06), ("l2", 0.15), ("l1", 0.3)]
FAMILY = [APGD(steps=20), APGDTargeted(steps=10)]


def attacked(
    attack: Evasion, system: System, data: Data, goal: str, eps: float, *, space: InputSpace | None = None
) -> tuple[Tensor, Target]:
    space = space or InputSpace(tuple(data.x.shape[1:]))
    with torch.no_grad():
        classes = system.respond(
            data.x[:1] if len(data) else torch.zeros(1, *space.shape).to(data.x), noise()
        ).logits.shape[1]
    threat = Threat.parse(f"evasion/white/{goal}:{eps}")
    target = Target(system, threat, space=space, classes=classes, rng=Streams(0), examples=len(data))
    region = Region(data.x.clone(), space, goal, eps)
    found = attack.perturb(target, data.x.clone(), data.y.clone(), region, Streams(1))
    assert region.holds(found).all()
    assert space.check(found) is None
    return found, target


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def wrong(system: System, x: Tensor, y: Tensor) -> Tensor:
    return system.respond(x, noise()).labels != y


def network(classes: int = 4, width: int = 6) -> System:
    """A network that bends, with all its classes met in the unit cube; in double precision, so that courses agree."""
    module = initialise(
        lambda: nn.Sequential(nn.Linear(width, 24), nn.Tanh(), nn.Linear(24, classes)), Streams(3)
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)
        module[-1].bias -= module(torch.full((1, width), 0.5))[0]
    return Bare(module.double()).eval().requires_grad_(False)


def examples(system: System, n: int = 40, width: int = 6) -> Data:
    """Return points that the system gets right."""
    x = torch.rand(n, width, generator=torch.Generator().manual_seed(1)).double()
    return Data.of(x, system.respond(x, noise()).logits.argmax(1))


def slow_apgd(
    system: System, x: Tensor, y: int, start: Tensor, norm: str, eps: float, steps: int, rho: float = 0.75
) -> Tensor:
    """One example (1, d), as algorithm 1 has it."""

    def project(point: Tensor) -> Tensor:
        delta = point - x
        delta = (
            delta.clamp(-eps, eps) if norm == "linf" else delta * min(1.0, eps / float(delta.norm() + 1e-30))
        )
        return (x + delta).clamp(0, 1)

    def ask(point: Tensor) -> tuple[float, Tensor, bool]:
        leaf = point.clone().requires_grad_()
        logits = system.respond(leaf, noise()).logits
        loss = cross_entropies(logits, torch.tensor([y]))
        return float(loss.detach()), torch.autograd.grad(loss.sum(), leaf)[0], int(logits.argmax()) != y

    shares, gap = [0.0, 0.22], 0.22
    while shares[-1] < 0.98:
        gap = max(gap - 0.03, 0.06)
        shares.append(shares[-1] + gap)
    checkpoints = [math.ceil(round(share * steps, 6)) for share in shares]
    point, last, stride = start, start, 2 * eps
    losses, halved, best_then = [], True, -math.inf
    best, best_loss, best_gradient = point, -math.inf, point
    for step in range(steps + 1):
        loss, gradient, broken = ask(point)
        if broken:
            return point
        losses.append(loss)
        if loss > best_loss:
            best, best_loss, best_gradient = point, loss, gradient
        if step in checkpoints[1:]:
            since = checkpoints[checkpoints.index(step) - 1]
            rises = sum(losses[i + 1] > losses[i] for i in range(since, step))
            stuck = rises < rho * (step - since) or (not halved and best_loss <= best_then)
            if stuck:
                stride, point, gradient = stride / 2, best, best_gradient
            halved, best_then = stuck, best_loss
        direction = gradient.sign() if norm == "linf" else gradient / gradient.norm()
        ahead = project(point + stride * direction)
        if step > 0:
            ahead = project(point + 0.75 * (ahead - point) + 0.25 * (point - last))
        point, last = ahead, point
    return best


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.04), ("l2", 0.1)])
def test_it_is_the_slow_and_obvious_algorithm(norm, eps):
    system = network()
    data = examples(system)
    region = Region(data.x, InputSpace((6,)), norm, eps)
    start = region.random(noise())
    target = Target(
        system,
        Threat.parse(f"evasion/white/{norm}:{eps}"),
        space=InputSpace((6,)),
        classes=4,
        rng=Streams(0),
        examples=len(data),
    )
    found, losses = maximise(
        lambda points, rows: target.slope(points, data.y[rows], rows), region, start=start, steps=50, rho=0.75
    )
    slow = [
        slow_apgd(system, data.x[i : i + 1], int(data.y[i]), start[i : i + 1], norm, eps, 50)
        for i in range(len(data))
    ]
    torch.testing.assert_close(found, torch.cat(slow), atol=1e-7, rtol=0)
    broken = wrong(system, found, data.y)
    assert torch.equal(broken, losses == math.inf)
    assert 0 < float(broken.float().mean()) < 1  # both ways of ending were met
    answers = system.respond(found, noise()).logits
    torch.testing.assert_close(losses[~broken], cross_entropies(answers, data.y)[~broken])


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.4), ("l1", 2.0)])
@pytest.mark.parametrize(
    "attack", [APGD(steps=30, loss=loss) for loss in ("ce", "dlr", "margin")] + [FAMILY[1]], ids=str
)
def test_what_can_be_broken_on_the_oracle_is(attack, norm, eps):
    task = Blobs()
    test = task.load(None).test
    found, _ = attacked(attack, task.best(), test, norm, eps, space=task.space)
    possible = task.broken(test.x, test.y, norm, eps)
    missed = possible & ~wrong(task.best(), found, test.y)
    assert 0.1 < float(possible.float().mean()) < 1
    assert int(missed.sum()) <= 2  # of 256, at the very edge of their balls


@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_an_example_that_breaks_costs_no_more(norm, eps):
    system = network()
    data = examples(system)
    for attack, most in ((APGD(steps=20), 21), (APGDTargeted(steps=20, targets=2), 42)):
        found, target = attacked(attack, system, data, norm, eps)
        broken = wrong(system, found, data.y)
        most += (2 if norm == "l1" else 0) * most // 21  # each wider ball has a last point too
        assert broken.any()
        assert (target.gradients[~broken] == most).all()
        assert (target.gradients[broken] < most).any()


def test_restarts_attack_what_still_stands_and_find_more():
    system = network()
    data = examples(system, 300)
    (once, first), (often, meter) = (
        attacked(APGD(steps=3, restarts=k), system, data, "linf", 0.05) for k in (1, 6)
    )
    broken_once, broken_often = wrong(system, once, data.y), wrong(system, often, data.y)
    assert torch.equal(once[broken_once], often[broken_once])
    assert torch.equal(first.gradients[broken_once], meter.gradients[broken_once])
    assert int(broken_often.sum()) > int(broken_once.sum())
    assert (meter.gradients[~broken_often] == 6 * 4).all()
    assert int(meter.queries.sum()) == 0


@pytest.mark.parametrize(("norm", "eps"), NORMS)
@pytest.mark.parametrize("attack", [APGD(steps=20, restarts=2), APGDTargeted(steps=10)], ids=str)
def test_an_example_fares_the_same_in_whatever_company(attack, norm, eps):
    system = network()
    data = examples(system, 24)
    together, meter = attacked(attack, system, data, norm, eps)
    space, threat = InputSpace((6,)), Threat.parse(f"evasion/white/{norm}:{eps}")
    target = Target(system, threat, space=space, classes=4, rng=Streams(0), examples=24)
    some = torch.tensor([1, 5, 6, 13, 22])
    found = attack.perturb(
        target.keep(some), data.x[some], data.y[some], Region(data.x, space, norm, eps).keep(some), Streams(1)
    )
    torch.testing.assert_close(found, together[some], atol=1e-7, rtol=0)
    assert torch.equal(target.gradients[some], meter.gradients[some])
    assert int(target.gradients.sum()) == int(target.gradients[some].sum())


@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_each_example_has_a_radius_of_its_own(norm, eps):
    system = network()
    data = examples(system, 12)
    radii = torch.linspace(0, eps, 12).double()
    region = Region(data.x, InputSpace((6,)), norm, radii)
    target = Target(
        system,
        Threat.parse(f"evasion/white/{norm}:{eps}"),
        space=region.space,
        classes=4,
        rng=Streams(0),
        examples=12,
    )
    found = APGD(steps=10).perturb(target, data.x, data.y, region, Streams(0))
    assert region.holds(found).all()
    assert torch.equal(found[0], data.x[0])
    assert (region.distance(found)[1:] > 0.5 * radii[1:]).all()


class Noisy(System):
    """Right on average, and never twice the same."""

    stochastic = True

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        height = x.flatten(1).sum(1) + torch.randn(len(x), generator=rng) * 0.01
        return Response(torch.stack([-height.detach() * 0 - height, height * 0], 1))


@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_a_stochastic_system_is_climbed_to_the_end(norm, eps):
    data = Data.of(torch.full((5, 4), 0.5), torch.zeros(5, dtype=torch.int64))
    found, target = attacked(APGD(steps=20), Noisy(), data, norm, eps)
    reach = {"linf": 4 * eps, "l2": 2 * eps, "l1": eps}[norm]
    torch.testing.assert_close((found - data.x).sum(1), torch.full((5,), reach), atol=0.02, rtol=0.2)
    assert (target.gradients == 8 * (21 if norm != "l1" else 23)).all()


def test_without_a_verdict_the_highest_point_comes_back():
    """A narrow peak that the last steps have left again."""
    met: list[tuple[float, Tensor]] = []

    def climb(points: Tensor, rows: Tensor) -> Slope:
        loss = -(points - 0.53).abs().sum(1)
        met.append((float(loss), points.clone()))
        return Slope((0.53 - points).sign(), None, loss)

    x = torch.full((1, 3), 0.5)
    found, losses = maximise(climb, Region(x, InputSpace((3,)), "linf", 0.1), start=x, steps=12, rho=0.75)
    best = max(met, key=lambda pair: pair[0])
    assert torch.equal(found, best[1])
    assert float(losses) == best[0]
    assert best[0] > met[-1][0]


def test_the_stride_shrinks_where_it_is_too_long():
    """The peak is met ever more closely: a fixed stride of two radii would jump about it for ever."""
    x = torch.tensor([[0.5], [0.5]])
    peak = torch.tensor([[0.517], [0.462]])
    found, _ = maximise(
        lambda points, rows: Slope((peak[rows] - points).sign(), None, -(points - peak[rows]).abs().sum(1)),
        Region(x, InputSpace((1,)), "linf", 0.1),
        start=x,
        steps=100,
        rho=0.75,
    )
    torch.testing.assert_close(found, peak, atol=5e-3, rtol=0)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_targets_are_the_likeliest_wrong_classes_in_turn(classes):
    system = network(classes)
    data = examples(system, 10)
    aims: list[Tensor] = []

    class Spy(Target):
        def slope(self, x, y, rows=None, *, loss=cross_entropies):
            assert loss is dlr
            aims.append(y.clone())
            return super().slope(x, y, rows, loss=loss)

    threat, space = Threat.parse("evasion/white/linf:0.0001"), InputSpace((6,))
    target = Spy(system, threat, space=space, classes=classes, rng=Streams(0), examples=10)
    APGDTargeted(steps=1, targets=3).perturb(
        target, data.x, data.y, Region(data.x, space, "linf", 1e-4), Streams(0)
    )
    order = system.respond(data.x, noise()).logits.argsort(1, descending=True)
    assert len(aims) == 2 * min(3, classes - 1)  # one step has two points
    for k, aim in enumerate(aims[::2]):
        assert torch.equal(aim, torch.stack([data.y, order[:, k + 1]], 1))
    assert (target.queries == 1).all()


class Cautious(System):
    """Wrong beyond 0.55, but refuses what lies before 0.6."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        height = x.flatten(1).mean(1)
        return Response(torch.stack([0.55 - height, height - 0.55], 1) * 10, (height - 0.55).abs() - 0.05)


@pytest.mark.parametrize(
    "attack", [APGD(steps=30, loss=loss) for loss in ("ce", "dlr", "margin")] + [FAMILY[1]], ids=str
)
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.16), ("l2", 0.32), ("l1", 0.64)])
def test_behind_refused_points_those_that_are_accepted_and_wrong_are_found(attack, norm, eps):
    data = Data.of(
        torch.linspace(0.40, 0.49, 8)[:, None].expand(8, 4).clone(), torch.zeros(8, dtype=torch.int64)
    )
    found, _ = attacked(attack, Cautious(), data, norm, eps)
    labels = Cautious().respond(found, noise()).labels
    reachable = data.x[:, 0] + 0.16 > 0.605
    assert 0 < int(reachable.sum()) < 8
    assert (labels[reachable] == 1).all()
    assert (labels != 1)[data.x[:, 0] + 0.16 < 0.595].all()


@pytest.mark.parametrize("attack", FAMILY, ids=str)
@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_the_edges(attack, norm, eps):
    system = network()
    data = examples(system, 6)
    none = data.rows(torch.arange(0))
    assert attacked(attack, system, none, norm, eps)[0].shape == none.x.shape
    assert attacked(attack, system, data.rows(torch.tensor([2])), norm, eps)[0].shape == (1, 6)
    assert torch.equal(attacked(attack, system, data, norm, 0.0)[0], data.x)
    fixed = InputSpace((6,), mutable=(False,) * 6)
    assert torch.equal(attacked(attack, system, data, norm, eps, space=fixed)[0], data.x)
    some = InputSpace((6,), mutable=(True, False, True, False, True, False))
    moved = attacked(attack, system, data, norm, eps, space=some)[0]
    assert torch.equal(moved[:, 1::2], data.x[:, 1::2])
    assert not torch.equal(moved, data.x)
    others = Data.of(data.x, (data.y + 1) % 4)
    found, target = attacked(attack, system, others, norm, eps / 100)
    assert wrong(system, found, others.y).all()
    assert int(target.gradients.max()) <= (
        1 if norm != "l1" else 19
    )  # the wider balls take 6 + 1 each at most


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.3), ("l1", 1.0)])
@pytest.mark.parametrize("attack", FAMILY, ids=str)
def test_the_system_is_asked_on_the_grid_and_the_result_is_on_it(attack, norm, eps):
    space = InputSpace((6,), grid=1 / 32)
    inner = network()

    class Strict(System):
        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            assert torch.equal(space.round(x), x.detach())
            return inner.respond(x, rng)

    data = examples(inner)
    data = Data.of(space.round(data.x), inner.respond(space.round(data.x), noise()).labels)
    found, _ = attacked(attack, Strict(), data, norm, eps, space=space)
    assert torch.equal(space.round(found), found)


def test_an_unknown_loss_is_told_with_those_there_are():
    system = network()
    with pytest.raises(FirstlineError, match="did you mean 'ce'"):
        attacked(APGD(loss="cw"), system, examples(system), "linf", 0.1)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.4), ("l1", 1.5)])
def test_it_is_no_weaker_than_pgd(digits, norm, eps):
    system, data = digits
    broken = [
        int(wrong(system, attacked(attack, system, data, norm, eps)[0], data.y).sum())
        for attack in (APGD(steps=50), PGD(steps=50))
    ]
    assert broken[1] - 2 <= broken[0] < 180  # of 200: starts differ


@pytest.mark.filterwarnings("ignore:there are")  # points with zero gradient
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.4), ("l1", 1.5)])
@pytest.mark.parametrize(
    "attack", [APGD(steps=50), APGD(steps=50, loss="dlr"), APGDTargeted(steps=30)], ids=str
)
def test_it_is_no_weaker_than_the_authors_own(digits, attack, norm, eps):
    library = pytest.importorskip("pyautoattack.autopgd_base")
    system, data = digits
    settings = {"norm": norm.capitalize(), "eps": eps, "n_iter": attack.steps, "use_largereps": norm == "l1"}
    if isinstance(attack, APGD):
        peer = library.APGDAttack(system.module, loss=attack.loss, device="cpu", **settings)
    else:
        peer = library.APGDAttack_targeted(system.module, device="cpu", **settings)
    with torch.random.fork_rng():
        theirs = wrong(system, peer.perturb(data.x.clone(), data.y.clone()), data.y)
    ours = wrong(system, attacked(attack, system, data, norm, eps)[0], data.y)
    assert int(ours.sum()) >= int(theirs.sum()) - 4  # of 200: starts differ by chance
