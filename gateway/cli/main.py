"""`sprawl`, the command. A verb's module is imported when that verb runs, so that `--help` and completion answer at once.

Exit codes: 0 done, 1 the node refused, 2 usage, or the node did not start, 3 no node answered, 130 interrupted.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from gateway.cli.failures import JSON_MODE, Failure

# Verb -> module and the line that `sprawl --help` shows. The verb is the function of its own name in that module.
VERBS = {
    "serve": ("gateway.cli.serve", "Run a node."),
    "topics": ("gateway.cli.topics", "List, create, describe, alter and delete topics."),
    "publish": ("gateway.cli.publish", "Publish records to an address."),
    "subscribe": ("gateway.cli.subscribe", "Show the records of an address as they arrive."),
    "replay": ("gateway.cli.replay", "Replay a window of the log: to the terminal, into a file, or into another topic."),
    "consume": ("gateway.cli.consume", "Consume records of an address as a named, durable consumer, and acknowledge them."),
    "consumers": ("gateway.cli.consumers", "List, show, delete, seek and give away durable consumers."),
    "dlq": ("gateway.cli.dlq", "List, show, replay and purge dead letters."),
    "tokens": ("gateway.cli.tokens", "Create, list and revoke access tokens."),
    "users": ("gateway.cli.users", "List, add and delete users with passwords, and change their passwords."),
    "certificates": ("gateway.cli.certificates", "Issue client certificates by the CA of a node on this machine."),
    "log": ("gateway.cli.log", "Examine and mend the log of a stopped node."),
    "keys": ("gateway.cli.keys", "Look after the keys of a node on this machine."),
    "check": ("gateway.cli.check", "Send a record through a running node, in and out by every protocol."),
    "load": ("gateway.cli.load", "Publish at a fixed rate, and show the latency of acknowledgements."),
    "doctor": ("gateway.cli.doctor", "Examine configuration, ports, certificates, keys, disk, clock and listeners."),
    "completion": ("gateway.cli.completion", "Print the completion script of a shell."),
    "demo": ("gateway.cli.demo", "Stream this machine's readings, then look for them on the disk."),
}

EPILOG = """\b
Addresses are topic/key: orders/eu/7 is topic orders, key eu/7.
A node on this machine is found by its home folder; any other by --url, --ca and SPRAWL_TOKEN.

\b
Exit codes: 0 done, 1 the node refused, 2 usage or the node did not start, 3 no node answered.
"""


class LazyGroup(click.Group):
    """A group that knows its verbs by name and line of help, and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _ = VERBS[cmd_name]
        command: click.Command = getattr(import_module(module), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Failure as failure:
            failure.as_json = bool(ctx.meta.get(JSON_MODE))
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in VERBS.items()])


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="sprawl-server", prog_name="sprawl")
def main() -> None:
    """One secure front door to event streams."""


if __name__ == "__main__":
    main(prog_name="sprawl")
