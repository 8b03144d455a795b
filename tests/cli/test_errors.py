"""What goes wrong is one line that says what to do, and never a traceback."""

import pytest

UNKNOWN = {
    "list": (["list", "atacks"], "no kind of thing to list is called 'atacks'; did you mean 'attacks' or"),
    "show": (["show", "unifrom-noise"], "no task, defense, attack, suite or recipe is called 'unifrom-noise'; did you mean 'uniform-noise'"),
    "show a key": (["show", "deadbeef"], "no record in runs begins with 'deadbeef'"),
    "show a file": (["show", "missing.toml"], "there is no suite file missing.toml"),
    "plan": (["plan", "quik"], "no suite is called 'quik'; did you mean 'quick'?"),
    "plan nothing": (["plan", "smoke", "-a", "x"], "nothing in smoke@1.0.0 matches the selection"),
    "plan rule": (["plan", "smoke", "-x", "x"], "write part=glob with one of task, defense, attack, threat"),
    "plan device": (["plan", "smoke", "--device", "tpu"], "--device must be auto, cpu or cuda; found 'tpu'"),
    "run": (["run", "smoky"], "no suite is called 'smoky'; did you mean 'smoke'?"),
    "compare": (["compare", "none", "nona"], "no defense with evasion records in runs is called 'none'"),
    "reproduce": (["reproduce", "wong2019"], "no recipe is called 'wong2019'; did you mean 'wong2018'?"),
    "reproduce file": (["reproduce", "missing.toml"], "cannot read missing.toml: No such file"),
    "reproduce weights": (["reproduce", "wong2018"], "needs the published weights: get mnist.pth from"),
    "check": (["check", "unifrom-noise"], "no task, defense or attack is called 'unifrom-noise'; did you mean 'uniform-noise'"),
    "check a file": (["check", "missing.py"], "there is no file missing.py"),
    "new": (["new", "defence", "mine"], "no kind of plugin is called 'defence'; did you mean 'defense'?"),
    "new name": (["new", "defense", "My Defense"], "small letters, digits and hyphens, such as my-defense"),
    "new keyword": (["new", "attack", "import"], "'import' can't be a name"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "told"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_name_is_one_line_with_the_near_misses(cli, catalogue, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    ran = cli(*words)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert told in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["plan", "--sede", "1"], "No such option: --sede"),
        (["run", "--jobs", "-1"], "greater than or equal to 0"),
        (["run", "--seed", "-1"], "greater than or equal to 0"),
        (["run", "--jobs", "two"], "valid int"),
        (["show"], "Missing argument"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_a_command_line_that_cannot_be_read_is_explained(cli, words, told):
    ran = cli(*words)
    assert ran.code == 2
    assert told in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("command", ["run", "doctor", "leaderboard", "status", "mlflow"])
def test_a_file_where_the_results_should_be_is_explained(cli, catalogue, tmp_path, command):
    (tmp_path / "results").write_text("a file")
    words = {
        "run": ["run", "smoke", "--jobs", 1],
        "mlflow": ["mlflow", "sync"],
        "leaderboard": ["leaderboard", "build"],
    }.get(command, [command])
    ran = cli(*words, "--results", tmp_path / "results")
    assert ran.code == {"run": 2, "doctor": 1, "leaderboard": 2, "status": 0, "mlflow": 0}[command], ran
    assert "Traceback" not in ran.err
    assert str(tmp_path / "results") in ran.out + ran.err
    assert (tmp_path / "results").read_text() == "a file"


def test_the_old_way_to_build_the_leaderboard_says_what_the_new_one_is(cli, tmp_path):
    ran = cli("leaderboard", "--results", tmp_path, "--title", "ours")
    assert ran.code == 2
    assert "firstline leaderboard build" in ran.err
    assert ran.err.count("\n") == 1


def test_serving_a_leaderboard_that_is_not_built_is_explained(cli, tmp_path):
    ran = cli("leaderboard", "serve", "--results", tmp_path)
    assert ran.code == 2
    assert "firstline leaderboard build" in ran.err


def test_weights_for_a_recipe_that_trains_are_refused(cli, catalogue, tmp_path, own_recipe):
    ran = cli("reproduce", own_recipe, "--weights", "net.pth", "--results", tmp_path)
    assert ran.code == 2
    assert "trains its own systems and takes no --weights" in ran.err


def test_weights_that_are_not_the_published_ones_are_refused(cli, catalogue, tmp_path):
    (tmp_path / "net.pth").write_bytes(b"x")
    ran = cli("reproduce", "wong2018", "--weights", tmp_path / "net.pth", "--results", tmp_path)
    assert ran.code == 2
    assert "is not the published file" in ran.err


def test_a_broken_suite_is_told_by_every_command_that_reads_it(cli, catalogue, tmp_path):
    (tmp_path / "mine.toml").write_text('name = "mine"\n')
    for command in ("show", "plan", "run"):
        ran = cli(command, tmp_path / "mine.toml", "--results", tmp_path)
        assert (ran.code, ran.err) == (2, f"error: {tmp_path}/mine.toml: seeds is missing; it must be a list of whole numbers, such as [0, 1]\n")  # fmt: skip
