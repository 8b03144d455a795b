import json

import pytest

from firstline.benchmark.cli import doctor as module


def told(cli, *words):
    ran = cli("doctor", "--json", *words)
    return ran.code, {finding["what"]: finding for finding in json.loads(ran.out)}


def levels(found):
    return {finding["level"] for finding in found.values()}


def test_a_fit_machine_has_no_problem(cli, catalogue, tmp_path):
    code, found = told(cli, "--results", tmp_path / "results", "--data-dir", tmp_path)
    assert code == 0
    assert levels(found) <= {"ok", "note"}
    assert any(what.startswith("Python 3.") for what in found)
    assert any(what.startswith("torch ") for what in found)
    assert any(what.startswith(f"results in {tmp_path / 'results'}") for what in found)
    assert "no plugins" in found


def test_doctor_leaves_nothing_in_the_results(cli, catalogue, tmp_path):
    told(cli, "--results", tmp_path / "results")
    assert list((tmp_path / "results").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_problem(cli, catalogue, tmp_path):
    (tmp_path / "results").write_text("")
    code, found = told(cli, "--results", tmp_path / "results")
    assert code == 1
    finding = found[f"results in {tmp_path / 'results'}"]
    assert finding["level"] == "problem"
    assert "choose another one with --results" in finding["advice"]


def test_a_missing_data_folder_is_a_problem(cli, catalogue, tmp_path):
    code, found = told(cli, "--results", tmp_path, "--data-dir", tmp_path / "missing")
    assert code == 1
    assert found[f"data in {tmp_path / 'missing'}"]["advice"] == "there is no such folder"


def test_a_missing_package_is_a_problem_and_an_optional_one_a_note(cli, catalogue, tmp_path, monkeypatch):
    real = module.version

    def version(name):
        if name in ("torchvision", "datasets", "opacus"):
            raise module.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(module, "version", version)
    code, found = told(cli, "--results", tmp_path)
    assert code == 1
    assert found["torchvision is not installed"]["level"] == "problem"
    assert found["datasets is not installed"]["level"] == "note"
    assert "firstline[hf]" in found["datasets is not installed"]["advice"]
    assert found["opacus is not installed"]["level"] == "note"
    assert "firstline[privacy]" in found["opacus is not installed"]["advice"]


def test_a_gpu_that_torch_cannot_use_is_a_problem(cli, catalogue, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(module, "resolve_device", lambda name: "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, found = told(cli, "--results", tmp_path)
    assert code == 1
    assert found["a GPU is there, but torch can't use it"]["level"] == "problem"


def test_a_plugin_that_does_not_load_is_a_problem_with_its_reason(
    cli, tmp_path, monkeypatch, registering, plugin
):
    monkeypatch.syspath_prepend(plugin(tmp_path / "plugin", "sick_plugin", "import no_such_module"))
    code, found = told(cli, "--results", tmp_path / "results")
    assert code == 1
    finding = found["plugin sick_plugin (sick_plugin) failed to load"]
    assert "No module named 'no_such_module'" in finding["advice"]
