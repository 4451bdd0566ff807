import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from gateway.cli.main import VERBS, main


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_sprawl(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_SPRAWL_COMPLETE" in result.stdout


def test_a_shell_gets_the_verbs() -> None:
    environ = {**os.environ, "_SPRAWL_COMPLETE": "bash_complete", "COMP_WORDS": "sprawl ", "COMP_CWORD": "1"}
    code = "from gateway.cli.main import main; main(prog_name='sprawl')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == set(VERBS)


def test_a_shell_gets_the_flags_of_a_verb() -> None:
    environ = {**os.environ, "_SPRAWL_COMPLETE": "bash_complete", "COMP_WORDS": "sprawl load --pro", "COMP_CWORD": "2"}
    code = "from gateway.cli.main import main; main(prog_name='sprawl')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert done.stdout.strip() == "plain,--protocol"
