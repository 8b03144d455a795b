"""Every command explains itself, within the width of a terminal."""

import pytest
import typer

from firstline.benchmark.cli.main import app


def commands(group=None, path=()):
    """Yield the path of every command, the groups included."""
    group = typer.main.get_command(app) if group is None else group
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


COMMANDS = [" ".join(path) for path in commands()]


def test_all_commands_are_there():
    wanted = "list show plan run status compare leaderboard reproduce check new doctor mlflow"
    assert set(wanted.split()) <= set(COMMANDS)
    assert "mlflow sync" in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_the_command_does_and_fits_the_terminal(cli, command):
    ran = cli(*command.split(), "--help")
    assert ran.code == 0
    assert ran.err == ""
    assert max(map(len, ran.out.splitlines())) <= 100
    assert ran.out.startswith("Usage:")
    about = ran.out.split("\n\n")[1].strip()
    assert len(about) > 20
    assert about.split()[-1].endswith((".", ":"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command):
    found = typer.main.get_command(app)
    for name in command.split():
        found = found.commands[name]
    unexplained = [parameter.name for parameter in found.params if not getattr(parameter, "help", "")]
    assert unexplained == []


@pytest.mark.parametrize("words", [[], ["mlflow"]], ids=["firstline", "mlflow"])
def test_a_group_without_a_command_shows_its_help(cli, words):
    ran = cli(*words)
    assert "Usage:" in ran.out + ran.err
    assert "Traceback" not in ran.err


def test_the_version_is_printed(cli):
    from firstline import __version__

    ran = cli("--version")
    assert (ran.code, ran.out) == (0, f"firstline {__version__}\n")
