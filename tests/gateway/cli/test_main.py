"""The command itself: quick, and complete."""

import subprocess
import sys
from importlib import import_module

import click
import pytest
from click.testing import CliRunner

from gateway.cli.main import VERBS, main

HEAVY = (
    "rich",
    "httpx",
    "websockets",
    "rocksdict",
    "cryptography",
    "uvloop",
    "uvicorn",
    "starlette",
    "msgspec",
    "psutil",
    "asyncio",
)


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from gateway.cli.main import main
try:
    main(["--help"])
except SystemExit:
    pass
print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "subscribe" in done.stdout
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_the_line_of_help_is_the_verbs_own(verb: str) -> None:
    module, line = VERBS[verb]
    command = getattr(import_module(module), verb)
    assert (command.name, (command.help or "").splitlines()[0]) == (verb, line)


def leaves(command: click.Command, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        return [
            leaf
            for name in command.list_commands(context)
            for leaf in leaves(command.get_command(context, name) or command, (*path, name))
        ]
    return [(path, command)]


@pytest.mark.parametrize(
    ("path", "command"), leaves(main, ()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_verb_has_help_and_json_and_no_flag_that_takes_a_secret(path: tuple[str, ...], command: click.Command) -> None:
    flags = {flag for parameter in command.params for flag in parameter.opts}
    assert "--json" in flags
    assert not flags & {"--token", "--password", "--secret"}
    shown = CliRunner().invoke(main, [*path, "--help"])
    assert shown.exit_code == 0
    assert all(parameter.help for parameter in command.params if isinstance(parameter, click.Option))


def test_an_unknown_verb_is_a_usage_error() -> None:
    assert CliRunner().invoke(main, ["pubish"]).exit_code == 2


def test_the_version_is_the_packages() -> None:
    assert CliRunner().invoke(main, ["--version"]).output.startswith("sprawl, version ")
