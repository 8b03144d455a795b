from dataclasses import replace
from itertools import product

import pytest

from firstline.benchmark.core.catalog import Card, Catalog, Setting
from firstline.benchmark.core.errors import FirstlineError, NotFound
from firstline.benchmark.core.ref import Ref, parse_stack
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.run import matrix
from firstline.benchmark.run.matrix import Selection, expand
from firstline.benchmark.run.suite import Block, Suite

WHITE, BLACK, L2 = "evasion/white/linf:0.1", "evasion/black/linf:0.1", "evasion/white/l2:0.5"
FLIPS = "poisoning/gray/availability:10%,train=100%"


def card(kind, name, *settings, **facts):
    return Card(kind, name, 1, (), "", "", "", "", "", 0, f"code of {name}", settings, facts)


def attack(name, vector, needs, goals, inputs=("real",), settings=(), **facts):
    return card("attack", name, *settings, vector=vector, needs=needs, goals=goals, inputs=inputs, **facts)


def defense(name, *hooks, inputs=("real", "tokens"), **facts):
    return card("defense", name, Setting("k", "int", 1), hooks=list(hooks), inputs=inputs, **facts)


CARDS = [
    card("task", "table", Setting("size", "int", 10), inputs="real", fingerprint="f" * 64),
    card("task", "pictures", inputs="real", fingerprint="e" * 64),
    card("task", "words", inputs="tokens", fingerprint="d" * 64),
    defense("none"),
    defense("sober", "train"),
    defense("harder", "build", "train"),
    defense("sieve", "collect"),
    defense("blur", "deploy", inputs=("real",)),
    defense("mend", "recover"),
    defense("filter", "collect", "recover"),
    defense("lent", "collect", package="no_such_either", install="pip install no-such-either"),
    attack("climb", "evasion", ["gradients"], ["linf", "l2"], settings=[Setting("steps", "int", 40)]),
    attack("guess", "evasion", ["labels"], ["linf"]),
    attack("borrowed", "evasion", ["labels"], ["linf"], package="no_such", install="pip install no-such"),
    attack("flip", "poisoning", ["train"], ["availability"], inputs=("real", "tokens")),
]
CATALOG = Catalog({k: {c.name: c for c in CARDS if c.kind == k} for k in ("task", "defense", "attack")})


def block(tasks="table", defenses="none", attacks="climb", threats=WHITE):
    """Return a block of names divided by spaces."""
    return Block(
        tuple(map(Ref.parse, tasks.split())),
        tuple(map(parse_stack, defenses.split())),
        tuple(map(Ref.parse, attacks.split())),
        tuple(map(Threat.parse, threats.split())),
    )


def suite(*blocks, seeds=(0,)):
    return Suite("mine", "1", "", seeds, 8, blocks)


def made(*blocks, seeds=(0,), catalog=CATALOG, **selection):
    return expand(suite(*blocks, seeds=seeds), catalog, Selection(**selection), "cpu", None)


def labels(found):
    return [cell.label for cell in found.cells]


WIDE = block("table pictures", "none sober blur sober+blur", "climb guess", f"{WHITE} {BLACK}")


def test_a_block_is_the_product_of_its_parts_once_per_seed():
    # climb needs gradients, which the black-box threat doesn't grant
    pairs = [("climb", WHITE), ("guess", WHITE), ("guess", BLACK)]
    wanted = {
        f"{task} · {stack} · {name} · {threat} · seed {seed}"
        for task, stack, (name, threat), seed in product(
            ("table", "pictures"), ("none", "sober", "blur", "sober+blur"), pairs, (3, 1)
        )
    }
    found = labels(made(WIDE, seeds=(3, 1)))
    assert set(found) == wanted
    assert len(found) == len(wanted)


def test_every_system_has_its_first_seed_before_any_has_its_second():
    found = made(WIDE, seeds=(1, 0, 2))
    alone = [cell.label.rpartition(" ")[0] for cell in made(WIDE).cells]
    assert [cell.seed for cell in found.cells] == sorted(cell.seed for cell in found.cells)
    for seed in (0, 1, 2):
        assert [c.label.rpartition(" ")[0] for c in found.cells if c.seed == seed] == alone


def test_a_cell_carries_what_the_suite_and_the_catalogue_say():
    (cell,) = made(block("table(size=3)", "sober+blur(k=2)", "climb", WHITE), seeds=(7,)).cells
    assert (cell.suite, cell.seed, cell.examples, cell.device) == ("mine@1", 7, 8, "cpu")
    assert cell.fingerprint == "f" * 64
    assert cell.task.settings == {"size": 3}
    assert [layer.settings for layer in cell.defense] == [{"k": 1}, {"k": 2}]
    assert cell.attack.settings == {"steps": 40}
    assert cell.attack.code == "code of climb"


@pytest.mark.parametrize(
    "again",
    [
        pytest.param(block(), id="the same block"),
        pytest.param(block(attacks="climb(steps=40) climb"), id="a default spelled out"),
        pytest.param(block(threats="evasion/white/linf:0.10"), id="another form of the threat"),
        pytest.param(block(defenses="none none"), id="a name twice"),
    ],
)
def test_a_cell_that_is_named_twice_runs_once(again):
    assert labels(made(block(), again)) == labels(made(block()))


def test_other_settings_are_other_cells():
    assert len(labels(made(block(attacks="climb climb(steps=41)")))) == 2


@pytest.mark.parametrize(
    ("selection", "keeps"),
    [
        ({"task": ("pict*",)}, lambda c: c.task.name == "pictures"),
        ({"defense": ("sober*",)}, lambda c: c.defense[0].name == "sober"),
        ({"defense": ("*blur",)}, lambda c: c.defense[-1].name == "blur"),
        ({"defense": ("none", "blur")}, lambda c: c.defense_text in ("none", "blur")),
        ({"attack": ("g?ess",)}, lambda c: c.attack.name == "guess"),
        ({"threat": ("*/black/*",)}, lambda c: str(c.threat) == BLACK),
        ({"task": ("table",), "attack": ("climb",)}, lambda c: (c.task.name, c.attack.name) == ("table", "climb")),
        ({"exclude": ("attack=cl*",)}, lambda c: c.attack.name != "climb"),
        ({"exclude": ("task=table", "defense=*+*")}, lambda c: c.task.name != "table" and len(c.defense) == 1),
        ({"task": ("table",), "exclude": ("threat=*black*",)}, lambda c: c.task.name == "table" and str(c.threat) == WHITE),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_selectors_are_globs_on_text_forms(selection, keeps):
    wanted = [cell.label for cell in made(WIDE).cells if keeps(cell)]
    assert labels(made(WIDE, **selection)) == wanted
    assert 0 < len(wanted) < len(made(WIDE).cells)


def test_globs_see_the_settings_too():
    found = made(block(attacks="climb climb(steps=9)"), attack=("*steps=9*",))
    assert [cell.attack.text for cell in found.cells] == ["climb(steps=9)"]


def test_selected_seeds_replace_those_of_the_suite():
    chosen = expand(suite(block(), seeds=(0, 1)), CATALOG, Selection(seeds=(5,)), "cpu", None)
    assert [cell.seed for cell in chosen.cells] == [5]


@pytest.mark.parametrize("rule", ["climb", "attack", "attack=", "weather=sunny"])
def test_a_rule_that_excludes_nothing_known_is_explained(rule):
    with pytest.raises(FirstlineError, match=r"write part=glob with one of task, defense, attack, threat"):
        made(WIDE, exclude=(rule,))


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        pytest.param(block(attacks="guess", threats=L2), "guess handles linf, not l2", id="goal"),
        pytest.param(
            block(threats=BLACK), f"climb needs gradients, which {BLACK} does not grant", id="needs"
        ),
        pytest.param(block("words"), "climb handles real inputs; words has tokens", id="attack's inputs"),
        pytest.param(
            block("words", "blur", "flip", FLIPS), "blur handles real inputs; words has tokens", id="inputs"
        ),
        pytest.param(
            block(defenses="sober+blur+harder"),
            "sober and harder both train the network; a stack has one trainer",
            id="two trainers",
        ),
        pytest.param(
            block(attacks="borrowed"),
            "borrowed needs no_such, which is not installed: pip install no-such",
            id="attack's package",
        ),
        pytest.param(
            block(defenses="sober+lent"),
            "lent needs no_such_either, which is not installed: pip install no-such-either",
            id="package",
        ),
    ],
)
def test_what_does_not_fit_is_left_out_with_the_reason(part, reason):
    found = made(part)
    assert [skip.reason for skip in found.skips] == [reason]
    assert found.cells == []
    names = [
        *part.tasks,
        *part.attacks,
        *part.threats,
        *(layer for stack in part.defenses for layer in stack),
    ]
    assert all(str(name) in found.skips[0].what for name in names)


def test_a_skip_takes_nothing_else_with_it():
    found = made(block("table words", "none sieve", "climb flip", f"{WHITE} {FLIPS}"))
    assert len(found.skips) == 2  # climb on words, behind either defense
    assert len(found.cells) == 2 + 4


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (block(tasks="tabel"), "no task is called 'tabel'; did you mean 'table'"),
        (block(defenses="none+sivee"), "no defense is called 'sivee'; did you mean 'sieve'"),
        (block(attacks="clim"), "no attack is called 'clim'; did you mean 'climb'"),
        (block(attacks="climb(step=1)"), "attack climb: no setting is called 'step'; did you mean 'steps'"),
        (block(attacks="climb(steps='many')"), "attack climb: steps must be int, got 'many'"),
        (block(attacks="climb(steps=True)"), "attack climb: steps must be int, got True"),
    ],
)
def test_unknown_names_come_with_the_near_misses(part, words):
    with pytest.raises(FirstlineError) as caught:
        made(part)
    assert words in str(caught.value)


def test_an_unknown_name_may_be_that_of_a_broken_plugin():
    with pytest.raises(NotFound, match="plugins that failed to load: mine"):
        made(block(attacks="clim"), catalog=replace(CATALOG, broken={"mine": "ImportError: no"}))


def test_a_selection_that_matches_nothing_says_where_to_look():
    with pytest.raises(FirstlineError, match="nothing in mine@1 matches the selection; `firstline show`"):
        made(WIDE, attack=("nothing*",))


def test_a_suite_without_a_fitting_vector_does_not_blame_the_selection():
    with pytest.raises(FirstlineError, match="mine@1 pairs no attack with a threat model of its vector"):
        made(block(attacks="flip", threats=WHITE))


class Loaded:
    """A task whose data is counted, and is not pinned."""

    def __init__(self, problem=None):
        self.loads, self.problem = 0, problem

    def load(self, folder):
        self.loads += 1
        if self.problem:
            raise self.problem
        return self

    def fingerprint(self):
        return "a" * 64


UNPINNED = replace(
    CATALOG,
    cards={**CATALOG.cards, "task": {"table": replace(CATALOG.cards["task"]["table"], facts={"inputs": "real", "fingerprint": ""})}},
)  # fmt: skip


def test_data_that_is_not_pinned_is_read_once_for_its_fingerprint(monkeypatch):
    task = Loaded()
    monkeypatch.setattr(matrix, "create", lambda *_: task)
    found = made(block(defenses="none sober"), seeds=(0, 1), catalog=UNPINNED)
    assert {cell.fingerprint for cell in found.cells} == {"a" * 64}
    assert task.loads == 1


def test_no_data_is_read_for_what_is_pinned_or_left_out(monkeypatch):
    task = Loaded()
    monkeypatch.setattr(matrix, "create", lambda *_: task)
    made(WIDE)
    made(block("table", "none", "guess", L2), catalog=UNPINNED)
    assert task.loads == 0


def test_a_task_that_cannot_be_loaded_is_one_line(monkeypatch):
    monkeypatch.setattr(matrix, "create", lambda *_: Loaded(KeyError("column")))
    with pytest.raises(FirstlineError, match=r"task table can't be loaded: KeyError: 'column'"):
        made(block(), catalog=UNPINNED)


@pytest.mark.parametrize(
    ("stack", "fitted", "repairs"),
    [
        ("none", "", ""),
        ("sober+sieve", "", ""),
        ("mend", "none", "mend"),
        ("mend(k=2)+mend", "none", "mend(k=2) mend"),
        ("sober+mend+sieve", "sober sieve", "mend"),
        ("none+mend", "none", "mend"),
        ("filter", "", "filter"),
        ("filter+mend", "filter", "filter mend"),
    ],
)
def test_a_layer_that_only_repairs_is_not_fitted(stack, fitted, repairs):
    (cell,) = made(block(defenses=stack, attacks="flip", threats=FLIPS)).cells
    assert " ".join(layer.text for layer in cell.fitted) == fitted
    assert " ".join(layer.text for layer in cell.repairs) == repairs


def test_a_repair_of_nothing_is_skipped_with_the_reason():
    found = made(block(defenses="mend sober+mend filter"))
    assert [cell.defense_text for cell in found.cells] == ["filter"]
    assert {skip.reason for skip in found.skips} == {
        "mend repairs after a poisoning, and evasion cells have none"
    }
