"""The query monitor: what it flags of attack traffic and of clean queries, and what it remembers."""

import pytest
import torch
from torch import Tensor, nn

from firstline.attacks.evasion.square import Square
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Context
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.defenses.query_monitor import Monitored, QueryMonitor
from firstline.tasks.breast_cancer import BreastCancer
from firstline.tasks.digits import Digits

CPU = torch.device("cpu")
TASK = Digits()
SPLITS = TASK.load(None)


def monitor(settings: QueryMonitor | None = None, inner: System | None = None, seed: int = 0) -> Monitored:
    settings = settings or QueryMonitor()
    system = settings.deploy(inner or Bare(nn.Identity()), TASK)
    settings.calibrate(system, SPLITS.train, Context(TASK, Streams(seed), CPU))
    return system


def digits(n: int, start: int = 0) -> Tensor:
    return SPLITS.train.x[start : start + n]


class Recorder(System):
    """Keeps what it was asked."""

    def __init__(self, inner: System) -> None:
        super().__init__(inner)
        self.asked: list[Tensor] = []

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        self.asked.append(x.clone())
        return self._inside().respond(x, rng)


class Stubborn(nn.Module):
    """Scores that move with the pixels, and always the answer 3: an attack has to go on."""

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
        return 0.01 * x.flatten(1) @ weight + 10 * nn.functional.one_hot(torch.tensor(3), 10)


@pytest.fixture(scope="module")
def traffic() -> list[Tensor]:
    """What Square asks about each of some digits, 60 queries each."""
    found, eps = [], TASK.eps["linf"]
    for x in digits(8).split(1):
        recorder = Recorder(Bare(Stubborn()))
        threat = Threat.parse(f"evasion/black/linf:{eps},queries=60")
        target = Target(recorder, threat, space=TASK.space, classes=10, rng=Streams(0), examples=1)
        Square().perturb(target, x, torch.tensor([3]), Region(x, TASK.space, "linf", eps), Streams(1))
        found.append(torch.cat(recorder.asked))
    assert min(map(len, found)) > 50
    return found


def test_an_attack_by_queries_is_flagged_early_and_then_nearly_always(traffic):
    system = monitor()
    for queries in traffic:
        flagged = system.observe(queries)
        assert int(flagged.float().argmax()) < 6
        assert float(flagged.float().mean()) > 0.8


def test_attacks_are_flagged_among_clean_queries_and_whatever_their_order(traffic):
    system, clean = monitor(), digits(300, 100)
    system.observe(clean[:150])
    queries = torch.stack(list(traffic[0][:20]) + list(clean[150:])[:20]).reshape(2, 20, 1, 8, 8)
    mixed = queries.transpose(0, 1).flatten(0, 1)
    flagged = torch.cat([system.observe(query) for query in mixed.split(1)]).reshape(20, 2)
    assert flagged[6:, 0].float().mean() > 0.8
    assert not flagged[:, 1].any()


def test_clean_queries_are_not_flagged():
    assert float(monitor().observe(SPLITS.train.x).float().mean()) < 0.005


def test_the_same_query_is_flagged_the_second_time():
    assert monitor().observe(torch.cat([digits(3), digits(2), digits(1, 9)])).tolist() == [False] * 3 + [
        True
    ] * 2 + [False]


def test_batches_don_t_count():
    x = torch.cat([digits(100), digits(50)])
    singly = monitor()
    assert torch.equal(torch.cat([singly.observe(row) for row in x.split(1)]), monitor().observe(x))


def test_rounding_hides_small_changes():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 5, (1, 1, 8, 8), generator=generator) / 5
    for change, seen in ((0.09, True), (0.11, False)):  # half a fifth of the range is 0.1
        system = monitor()
        assert system.observe(torch.cat([x, x + change])).tolist() == [False, seen]


@pytest.mark.parametrize(("share", "seen"), [(0.0, True), (0.4, True), (0.9, False)])
def test_a_query_is_known_when_more_than_a_share_of_its_hashes_are(share, seen):
    x = digits(1).clone()
    half = x.clone()
    half[..., :2, :] = 1 - half[..., :2, :].round()
    system = monitor(QueryMonitor(share=share))
    first, second = (set(system.fingerprints(v)[0]) for v in (x, half))
    assert 0.4 < len(first & second) / len(second) < 0.9
    system.observe(x)
    assert system.observe(half).tolist() == [seen]


def test_a_fingerprint_is_the_largest_hashes_of_all_windows_by_hand():
    settings = QueryMonitor(window=3, hashes=4)
    system, x = monitor(settings), digits(1)
    secret = system.secret.tolist()
    levels = [round(v * 5) + 1 for v in x.flatten().tolist()]
    sums = [sum(a * b for a, b in zip(levels[i : i + 3], secret, strict=True)) for i in range(62)]
    wrapped = {(value + 2**63) % 2**64 - 2**63 for value in sums}
    assert system.fingerprints(x) == [sorted(wrapped, reverse=True)[:4]]


def test_the_secret_depends_on_the_seed_and_decides_which_windows_count():
    prints = [monitor(seed=seed).fingerprints(digits(1)) for seed in (0, 0, 1)]
    assert prints[0] == prints[1]
    assert not set(prints[0][0]) & set(prints[2][0])


def test_memory_is_bounded_and_the_oldest_are_forgotten():
    system, x = monitor(QueryMonitor(memory=50)), digits(200)
    system.observe(x)
    assert len(system._seen) == 50
    assert sum(map(len, system._places.values())) == sum(map(len, system._seen.values()))
    assert set(system._places) == {value for found in system._seen.values() for value in found}
    assert system.observe(x[150:170]).all()
    assert not system.observe(x[:20]).any()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
def test_a_query_is_flagged_as_by_comparing_it_with_each_of_the_last_ones(share):
    system, generator = (
        monitor(QueryMonitor(window=8, share=share, hashes=20, memory=30)),
        torch.Generator().manual_seed(0),
    )
    x = digits(4).repeat(
        25, 1, 1, 1
    )  # each of four digits again and again, more and more of its pixels redrawn
    redrawn = torch.rand(x.shape, generator=generator) < torch.arange(100).reshape(-1, 1, 1, 1) / 400
    x = torch.where(redrawn, torch.rand(x.shape, generator=generator), x)
    prints = [set(found) for found in system.fingerprints(x)]
    expected = [
        any(len(found & other) > share * len(found) for other in prints[max(0, i - 30) : i])
        for i, found in enumerate(prints)
    ]
    assert system.observe(x).tolist() == expected
    assert 0 < sum(expected) < 100


def test_answers_stay_as_they_are_and_what_was_seen_is_not_stored():
    inner = Bare(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    system = monitor(inner=inner)
    before = {name: tensor.clone() for name, tensor in system.state_dict().items()}
    system.observe(torch.cat([digits(5), digits(5)]))
    assert torch.equal(system(digits(5), torch.Generator()), inner(digits(5), torch.Generator()))
    assert all(torch.equal(before[name], tensor) for name, tensor in system.state_dict().items())
    again = QueryMonitor().deploy(inner, TASK)
    again.load_state_dict(system.state_dict())
    assert again.fingerprints(digits(5)) == system.fingerprints(digits(5))
    assert not again.observe(digits(5)).any()


def test_monitors_around_one_another_flag_what_either_does():
    outer = monitor(QueryMonitor(share=0.99), inner=monitor(QueryMonitor(share=0.0)))
    x = digits(1).clone()
    half = x.clone()
    half[..., :2, :] = 1 - half[..., :2, :].round()
    assert outer.observe(torch.cat([x, half])).tolist() == [False, True]


def test_tables_are_no_images():
    with pytest.raises(FirstlineError, match="query-monitor is for images"):
        QueryMonitor().deploy(Bare(nn.Identity()), BreastCancer())


@pytest.mark.parametrize(
    "settings",
    [
        QueryMonitor(window=0),
        QueryMonitor(window=65),
        QueryMonitor(hashes=0),
        QueryMonitor(memory=0),
        QueryMonitor(share=1.0),
        QueryMonitor(share=-0.1),
    ],
    ids=str,
)
def test_settings_out_of_range_are_told(settings):
    with pytest.raises(FirstlineError, match="query-monitor"):
        settings.deploy(Bare(nn.Identity()), Blobs())
