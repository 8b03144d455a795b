"""What each layer adds: the same numbers as two runs and a comparison."""

import json

import pytest

SMALL = ["--task", "breast-cancer", "--attack", "fgsm", "--seed", 0, "--examples", 40]
STACK = "adversarial-training(steps=2)+input-noise(sigma=0.1)"
LINF = "evasion/white/linf:0.05"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ablation")


@pytest.fixture(scope="module")
def ablated(cli, folder):
    """Return the differences of one ablation."""
    ran = cli("ablate", STACK, *SMALL, "--threat", LINF, "--results", folder, "--jobs", 1, "--json")
    assert ran.code == 0, ran
    return json.loads(ran.out)


def test_every_layer_is_left_out_once(ablated):
    assert {d["layer"]: d["b"] for d in ablated} == {
        "adversarial-training(steps=2)": "input-noise",
        "input-noise": "adversarial-training(steps=2)",
    }
    assert {d["a"] for d in ablated} == {"adversarial-training(steps=2)+input-noise"}
    assert {(d["task"], d["threat"], d["n"]) for d in ablated} == {("breast-cancer", LINF, 40)}


def test_it_is_what_compare_says_but_for_the_number_of_tests(ablated, cli, folder):
    for found in ablated:
        (told,) = json.loads(cli("compare", found["a"], found["b"], "--results", folder, "--json").out)
        assert (told[found["a"]], told[found["b"]]) == (found["first"], found["second"])
        assert (told["only_first"], told["only_second"]) == (found["only_first"], found["only_second"])
        assert told["p"] <= found["p"]
    assert any(found["first"] != found["second"] for found in ablated)


def test_again_it_reuses_all_and_prints_a_line_per_layer(ablated, cli, folder):
    ran = cli("ablate", STACK, *SMALL, "--threat", LINF, "--results", folder, "--jobs", 1)
    assert ran.code == 0, ran
    assert "0 cells and 0 fits to run, 3 reused" in ran.out
    for found in ablated:
        (line,) = [line for line in ran.out.splitlines() if line.endswith("  " + found["layer"])]
        assert line.split()[0] == f"{100 * (found['first'] - found['second']):+.1f}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none"], "there is nothing to leave out of none"),
        (["nonsense"], "no defense is called 'nonsense'"),
        (["input-noise", "--task", "nowhere"], "no task is called 'nowhere'"),
    ],
)
def test_what_cannot_be_ablated_is_told(cli, tmp_path, words, said):
    ran = cli("ablate", *words, "--results", tmp_path)
    assert ran.code == 2
    assert said in ran.err
