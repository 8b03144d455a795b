import json
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstline.benchmark.core.canonical import canonical
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.run import keys
from firstline.benchmark.run.keys import Cell, Use, cell_preimage, fit_preimage, key, stage_keys

FLIPS = "poisoning/gray/availability:10%,train=100%"


def cell_key(cell, **how):
    return key(cell_preimage(cell, **how))


def fit_key(cell, *, poisoned=False):
    return key(fit_preimage(cell, poisoned=poisoned))


@pytest.fixture(scope="module")
def cell(new_cell, new_use):
    """A cell with every kind of setting, in a stack of two layers."""
    settings = {"k": 2, "rate": 0.5, "loss": "ce", "fast": True, "sizes": (1, 2), "limit": None}
    return new_cell((new_use("sieve", **settings), new_use("blur")), threat=FLIPS)


@pytest.fixture(scope="module")
def preimage(cell):
    """What the key of a real cell is made of, with all stages in it."""
    return json.loads(canonical(cell_preimage(cell)))


def leaves(value, path=()):
    """Yield the path of every value in plain data that holds no other."""
    if isinstance(value, dict | list) and value:
        for at in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[at], (*path, at))
    else:
        yield path


def look(value, path):
    for at in path:
        value = value[at]
    return value


def put(preimage, path, value):
    changed = deepcopy(preimage)
    look(changed, path[:-1])[path[-1]] = value
    return changed


def nearest(value):
    """Return a value that differs from value as little as possible."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value + sys.float_info.epsilon * value
        case str():
            return value + " "
        case dict():
            return {"": None}
        case list():
            return [None]
    return ""


def test_the_smallest_change_of_any_leaf_is_another_key(preimage):
    paths = list(leaves(preimage))
    found = [key(put(preimage, path, nearest(look(preimage, path)))) for path in paths]
    assert len(paths) > 50
    assert len({key(preimage), *found}) == 1 + len(paths)


def test_a_leaf_that_is_gone_or_moved_is_another_key(preimage):
    found = []
    for path in leaves(preimage):
        without = deepcopy(preimage)
        del look(without, path[:-1])[path[-1]]
        found.append(key(without))
        if isinstance(path[-1], str):
            look(without, path[:-1])[path[-1] + "_"] = look(preimage, path)
            found.append(key(without))
    assert key(preimage) not in found


scalars = (
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)
)


@given(data=st.data(), value=scalars)
def test_whatever_else_stands_in_a_leaf_is_another_key(preimage, data, value):
    path = data.draw(st.sampled_from(list(leaves(preimage))))
    same = canonical(look(preimage, path)) == canonical(value)
    assert (key(put(preimage, path, value)) == key(preimage)) is same


def test_the_order_of_entries_and_tuples_do_not_matter(preimage):
    backwards = json.loads(canonical(preimage), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert list(backwards) != list(preimage)
    assert key(backwards) == key(preimage)
    assert key({"a": (1, 2)}) == key({"a": [1, 2]})


USE = {
    "name": lambda use: replace(use, name=use.name + "s"),
    "version": lambda use: replace(use, version=use.version + 1),
    "settings": lambda use: replace(use, settings={**use.settings, "new": 0}),
    "code": lambda use: replace(use, code="other"),
}
DISPLAYED = {
    "text": lambda use: replace(use, text="another way to write it"),
    "tags": lambda use: replace(use, tags=("control",)),
}
CELL = {
    "task": lambda cell: replace(cell, task=replace(cell.task, version=9)),
    "fingerprint": lambda cell: replace(cell, fingerprint="0" * 64),
    "defense": lambda cell: replace(cell, defense=cell.defense[::-1]),
    "attack": lambda cell: replace(cell, attack=replace(cell.attack, version=9)),
    "threat": lambda cell: replace(cell, threat=replace(cell.threat, amount=0.2)),
    "seed": lambda cell: replace(cell, seed=1),
    "examples": lambda cell: replace(cell, examples=65),
    "device": lambda cell: replace(cell, device="cuda"),
    "fitted": lambda cell: replace(cell, fitted=cell.defense[:1]),
}
PARTS = {
    "task": lambda cell, change: replace(cell, task=change(cell.task)),
    "first layer": lambda cell, change: replace(cell, defense=(change(cell.defense[0]), *cell.defense[1:])),
    "last layer": lambda cell, change: replace(cell, defense=(*cell.defense[:-1], change(cell.defense[-1]))),
    "attack": lambda cell, change: replace(cell, attack=change(cell.attack)),
}


def test_no_field_of_a_cell_or_an_item_is_forgotten_here():
    assert {f.name for f in fields(Cell)} == {*CELL, "suite"}
    assert {f.name for f in fields(Use)} == {*USE, *DISPLAYED, "hooks"}  # of which one counts, as told below


@pytest.mark.parametrize("field", CELL)
def test_every_field_of_a_cell_is_in_its_key(cell, field):
    assert cell_key(CELL[field](cell)) != cell_key(cell)


@pytest.mark.parametrize("field", USE)
@pytest.mark.parametrize("part", PARTS)
def test_all_that_identifies_an_item_is_in_the_key(cell, part, field):
    assert cell_key(PARTS[part](cell, USE[field])) != cell_key(cell)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["k", "rate", "loss", "fast", "sizes", "limit"])
def test_each_setting_is_in_the_key(cell, part, name):
    settings = {"k": 2, "rate": 0.5, "loss": "ce", "fast": True, "sizes": (1, 2), "limit": None}
    other = {"k": 3, "rate": 0.6, "loss": "kl", "fast": False, "sizes": (2, 1), "limit": 0}
    found = [
        cell_key(PARTS[part](cell, lambda use, s=s: replace(use, settings=s)))
        for s in (settings, {**settings, name: other[name]})
    ]
    assert found[0] != found[1]


def test_what_cannot_change_a_number_is_not_in_the_key(cell):
    assert cell_key(replace(cell, suite="another@2")) == cell_key(cell)
    for change in DISPLAYED.values():
        for part in PARTS.values():
            assert cell_key(part(cell, change)) == cell_key(cell)


def test_blind_scores_and_others_are_different_cells_of_one_system(cell):
    assert cell_key(cell, blind=False) != cell_key(cell, blind=True)
    blind, seeing = stage_keys(cell, blind=True), stage_keys(cell, blind=False)
    assert {name for name in blind if blind[name] != seeing[name]} == {"score"}


@pytest.mark.parametrize("option", ["answers=labels", "queries=7", "train=50%", "aux=no", "defense=known"])
def test_every_option_of_a_threat_is_in_the_key(new_cell, option):
    plain, other = (new_cell(threat="evasion/gray/linf:0.1" + more) for more in ("", f",{option}"))
    assert cell_key(plain) != cell_key(other)


def test_two_ways_to_write_a_threat_are_one_key(new_cell):
    found = {
        cell_key(new_cell(threat=f"evasion/black/linf:{radius},queries={queries}"))
        for radius, queries in (("0.5", "1k"), ("1/2", "1000"), ("0.50", "1000"))
    }
    assert len(found) == 1


def test_a_clean_fit_is_shared_by_all_attacks_and_threats(new_cell, new_use):
    base = new_cell()
    others = [
        new_cell(attack=new_use("fgsm")),
        new_cell(threat="evasion/black/l2:1"),
        new_cell(attack=new_use("flip"), threat=FLIPS),
        replace(base, examples=1),
    ]
    assert {fit_key(cell) for cell in others} == {fit_key(base)}


@pytest.mark.parametrize(
    "change",
    [
        lambda cell, use: replace(cell, attack=use("other-flip")),
        lambda cell, use: replace(cell, attack=use("flip", share=0.5)),
        lambda cell, use: replace(cell, threat=Threat.parse("poisoning/gray/availability:20%,train=100%")),
        lambda cell, use: replace(cell, threat=Threat.parse("poisoning/gray/availability:10%,train=50%")),
        lambda cell, use: replace(cell, seed=1),
    ],
    ids=["attack", "setting", "amount", "share", "seed"],
)
def test_a_poisoned_fit_is_that_of_its_poison(new_cell, new_use, change):
    base = new_cell(attack=new_use("flip"), threat=FLIPS)
    assert fit_key(change(base, new_use), poisoned=True) != fit_key(base, poisoned=True)
    assert fit_key(base, poisoned=True) != fit_key(base)


def test_two_defenses_never_share_a_fit(new_cell, new_use):
    stacks = [
        (new_use("none"),),
        (new_use("blur"),),
        (new_use("blur", k=2),),
        (replace(new_use("blur"), code="edited"),),
        (new_use("none"), new_use("blur")),
        (new_use("blur"), new_use("none")),
        (new_use("blur"), new_use("blur")),
    ]
    for poisoned in (False, True):
        found = {fit_key(new_cell(stack, threat=FLIPS), poisoned=poisoned) for stack in stacks}
        assert len(found) == len(stacks)


def test_two_devices_and_two_versions_of_torch_share_no_fit(cell, monkeypatch):
    found = [fit_key(cell), fit_key(replace(cell, device="cuda"))]
    monkeypatch.setattr(keys, "numeric", lambda device: {"torch": "0.1", "device": device})
    assert len({*found, fit_key(cell)}) == 3


def test_the_key_is_the_same_in_another_process(preimage):
    code = "import json, sys; from firstline.benchmark.run.keys import key; print(key(json.load(sys.stdin)))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(preimage),
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {key(preimage)}


def test_the_key_of_a_fixed_preimage_never_changes():
    preimage = {"stage": "x/1", "text": "é", "number": 0.1, "whole": 3, "list": [True, None], "inner": {"b": 1, "a": 2}}  # fmt: skip
    assert key(preimage) == "43d27a785290d221dec52445e82c7de84b920cf005494c9f0731f0fc31c77fe8"


def test_the_key_of_a_fixed_cell_never_changes(cell, monkeypatch):
    """If this fails on purpose, every record that was ever written is measured anew: say so in the CHANGELOG."""
    monkeypatch.setitem(keys.VERSIONS, "poisoning", 1)
    monkeypatch.setattr(keys, "numeric", lambda device: {"core": 1, "device": device, "dtype": "float32", "torch": "2.6"})  # fmt: skip
    assert cell_key(cell) == "e99de74de9efa338afa35ffe50c3b79b9512deb2821bfc1a88d140c390620008"


def test_a_preimage_with_nan_has_no_key():
    with pytest.raises(ValueError, match="not JSON compliant"):
        key({"x": float("nan")})


@pytest.mark.parametrize(
    ("asked", "gpu", "hidden", "found"),
    [
        ("auto", True, "0", "cuda"),
        ("auto", True, "-1", "cpu"),
        ("auto", True, "", "cpu"),
        ("auto", False, "0", "cpu"),
        ("cuda", True, "0", "cuda"),
        ("cpu", True, "0", "cpu"),
    ],
)
def test_the_device_is_known_without_torch(monkeypatch, tmp_path, asked, gpu, hidden, found):
    monkeypatch.setattr(keys, "GPU_DEVICES", (tmp_path if gpu else tmp_path / "none",))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert keys.resolve_device(asked) == found


@pytest.mark.parametrize(
    ("asked", "words"),
    [("tpu", "must be auto, cpu or cuda; found 'tpu'"), ("cuda", "no NVIDIA GPU is visible here")],
)
def test_a_device_that_is_not_there_is_one_line(monkeypatch, asked, words):
    monkeypatch.setattr(keys, "GPU_DEVICES", ())
    with pytest.raises(FirstlineError, match=f"--device.*{words}"):
        keys.resolve_device(asked)


def repaired(cell, *layers):
    """Return cell with layers that only repair behind its own."""
    more = tuple(replace(layer, hooks=("recover",)) for layer in layers)
    return replace(cell, defense=(*cell.defense, *more), fitted=cell.defense)


def test_a_layer_that_only_repairs_shares_the_fit_and_nothing_after_it(cell, new_use):
    other = repaired(cell, new_use("mend"))
    assert fit_key(other, poisoned=True) == fit_key(cell, poisoned=True)
    assert fit_key(other) == fit_key(cell)
    assert cell_key(other) != cell_key(cell)
    shared, own = stage_keys(cell), stage_keys(other)
    assert {name for name in shared if shared[name] == own[name]} == {"data", "poison", "fit"}
    assert "repair" not in shared
    assert len(set(own.values())) == len(own) == 6


def test_a_repair_is_of_one_fit_by_its_layers_in_order_seen_on_so_many_examples(cell, new_use):
    mend, patch = new_use("mend"), new_use("patch", k=1)
    base = repaired(cell, mend, patch)
    found = [
        stage_keys(other)["repair"]
        for other in (
            base,
            repaired(cell, patch, mend),
            repaired(cell, mend),
            repaired(cell, mend, replace(patch, settings={"k": 2})),
            replace(base, seed=1),
            replace(base, examples=65),
            replace(base, fitted=cell.defense[:1]),
            replace(base, attack=replace(cell.attack, version=9)),
        )
    ]
    assert len(set(found)) == len(found)


def test_where_a_repair_stands_in_the_stack_is_another_record_of_the_same_repair(cell, new_use):
    base = repaired(cell, new_use("mend"))
    first = replace(base, defense=base.defense[::-1])
    assert cell_key(first) != cell_key(base)
    assert stage_keys(first)["repair"] == stage_keys(base)["repair"]


def test_the_key_of_a_stream_holds_all_that_can_change_it_and_nothing_else(cell, new_use, monkeypatch):
    shape = {"size": 25, "share": 0.5}

    def of(cell, shape=shape):
        return key(keys.stream_preimage(cell, shape))

    changes = {
        "task": new_use("blobs", dim=9), "fingerprint": "e" * 64, "defense": cell.defense[:1], "seed": 5,
        "attack": new_use("pgd", steps=41), "threat": Threat.parse(FLIPS.replace("10%", "11%")), "device": "cuda",
    }  # fmt: skip
    found = [
        of(cell),
        of(cell, shape | {"size": 26}),
        *(of(replace(cell, **{k: v})) for k, v in changes.items()),
    ]
    for name, versions in (("poisoning", keys.VERSIONS), ("STREAM", vars(keys))):
        with monkeypatch.context() as patch:
            patch.setitem(versions, name, 99)
            found.append(of(cell))
    assert len(set(found)) == len(found)
    assert of(replace(cell, suite="another")) == of(cell)
