"""`sprawl completion`: what a shell needs to complete verbs, flags and their choices by the tab key."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from gateway.cli.display import print_json
from gateway.cli.options import json_option

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_SPRAWL_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@json_option
@click.pass_context
def completion(context: click.Context, shell: str, as_json: bool) -> None:
    """Print the completion script of a shell.

    \b
    bash   sprawl completion bash > ~/.local/share/bash-completion/completions/sprawl
    zsh    sprawl completion zsh > ~/.zfunc/_sprawl
    fish   sprawl completion fish > ~/.config/fish/completions/sprawl.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(context.find_root().command, {}, "sprawl", VARIABLE).source()
    if as_json:
        print_json({"shell": shell, "script": script})
    else:
        click.echo(script)
