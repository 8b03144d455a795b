"""From a cell to its record, and back."""

from dataclasses import replace
from pathlib import Path

import pytest

from firstline.benchmark.core.catalog import Catalog
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.record import Cost
from firstline.benchmark.core.ref import Ref
from firstline.benchmark.run import keys
from firstline.benchmark.run.keys import cell_preimage, key
from firstline.benchmark.run.matrix import fitted, use
from firstline.benchmark.run.recording import Job, cell_of, make_record
from firstline.benchmark.run.store import Store


@pytest.fixture(scope="module")
def records(smoke):
    return list(Store(smoke).records())


def test_a_record_says_of_its_cell_all_that_it_takes_to_run_it_again(records, catalogue):
    for record in records:
        cell = cell_of(record, catalogue)
        assert key(cell_preimage(cell)) == record.key
        assert (cell.defense_text, cell.attack.text) == (record.defense_text, record.attack.text)


@pytest.mark.parametrize(("what", "now"), [("version", 99), ("code", "other")])
@pytest.mark.parametrize("kind", ["task", "defense", "attack"])
def test_an_item_that_changed_since_is_another_cell(records, catalogue, kind, what, now):
    changed = {name: replace(card, **{what: now}) for name, card in catalogue.cards[kind].items()}
    with pytest.raises(FirstlineError, match=rf"{kind} .*: the record has {what} .*, here it is {now}; use") as caught:  # fmt: skip
        cell_of(records[0], Catalog({**catalogue.cards, kind: changed}))
    assert "\n" not in str(caught.value)


def test_another_torch_is_another_cell(records, catalogue, monkeypatch):
    monkeypatch.setattr(keys, "numeric", lambda device: {"torch": "0.1", "device": device})
    with pytest.raises(FirstlineError, match="which is another cell"):
        cell_of(records[0], catalogue)


@pytest.mark.parametrize("preimage", [{}, {"score": 1}])
def test_an_edited_preimage_is_found_out(records, catalogue, preimage):
    with pytest.raises(FirstlineError, match="was edited: its key is not that of its preimage"):
        cell_of(records[0].model_copy(update={"preimage": preimage}), catalogue)


@pytest.mark.parametrize("change", [{"seed": 9}, {"threat": "evasion/white/linf:0.06", "vector": "evasion"}])
def test_an_edited_cell_is_found_out(records, catalogue, change):
    with pytest.raises(FirstlineError, match="which is another cell"):
        cell_of(records[0].model_copy(update=change), catalogue)


def test_an_item_that_is_gone_is_named(records, catalogue):
    with pytest.raises(FirstlineError, match="no attack is called"):
        cell_of(records[0], Catalog({**catalogue.cards, "attack": {}}))


def test_tags_of_every_layer_are_on_the_record(records):
    assert {tuple(r.tags) for r in records if r.defense_text == "none"} == {("reference",)}


def test_the_record_of_a_repaired_system_leads_back_to_its_fit(catalogue, new_cell):
    stack = tuple(use(catalogue.get("defense", name), Ref(name)) for name in ("input-noise", "fine-tuning"))
    about = {
        "task": use(catalogue.get("task", "digits"), Ref("digits")),
        "attack": use(catalogue.get("attack", "badnets"), Ref("badnets")),
    }
    made = new_cell(stack, threat="poisoning/gray/backdoor:10%,train=100%")
    cell = replace(made, fitted=fitted(stack, catalogue), **about)
    record = make_record(cell, Job(Path("unused"), None), "2026-01-01T00:00:00Z", Cost())
    assert [layer.name for layer in cell.fitted] == ["input-noise"]
    assert cell_of(record, catalogue) == cell
