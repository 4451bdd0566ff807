"""`sprawl serve`: runs a node until it is told to stop, and says on its first screen all that is needed to use it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli.failures import Unusable
from gateway.cli.options import FILE, home_option, json_option
from gateway.cli.welcome import Welcome

if TYPE_CHECKING:
    from gateway.app import Node
    from gateway.config import Config


@click.command()
@home_option
@click.option("--config", "config_file", type=FILE, envvar="SPRAWL_CONFIG", show_envvar=True,
              help="TOML file of settings. [default: <home>/sprawl.toml where there is one]")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="One setting; may be repeated.")
@click.option("--print-config", is_flag=True, help="Print all settings with where each came from, and do not start.")
@json_option
def serve(home: Path | None, config_file: Path | None, settings: tuple[str, ...], print_config: bool, as_json: bool) -> None:
    """Run a node.

    The first start makes everything that it needs to be secure: keys, a certificate authority of its own, a certificate, and an
    admin token. Ctrl-C or SIGTERM finishes what was accepted, then stops; a second one stops at once.

    \b
    sprawl serve --home .sprawl
    sprawl serve --set listeners.http.port=9443 --set log.durability=os
    """
    config = load_config(home, config_file, settings, on_screen=sys.stderr.isatty() and not print_config)
    if print_config:
        from gateway.config import dump

        click.echo(dump(config), nl=False)
        return
    run(config, lambda node: Welcome.of(node, config).show(as_json=as_json))


def run(config: Config, started: Callable[[Node], None]) -> None:
    """Until SIGTERM or SIGINT. Refusals to start become one clear failure; what is nobody's mistake keeps its traceback."""
    import uvloop

    from broker.errors import BrokerError
    from security.errors import SecurityError

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(config, started))
    except (BrokerError, SecurityError) as error:
        raise Unusable("the node does not start", str(error)) from None
    except OSError as error:
        raise Unusable("the node does not start", _in_words(error), _advice(error)) from None


async def _run(config: Config, started: Callable[[Node], None]) -> None:
    from broker.machine import calm_collector
    from gateway.app import Node

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    node = Node(config)
    await node.start()
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _stop, loop, stopping)
        calm_collector()  # here and not in the node: the whole process is this node
        started(node)
        await stopping.wait()
    finally:
        await node.stop()


def _stop(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> None:
    """The next signal finds its default again: whoever asks twice does not wait for the drain. The journal bears it."""
    stopping.set()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
    if sys.stdout.isatty():
        click.echo("\nstopping: finishing what was accepted")


def load_config(home: Path | None, config_file: Path | None, settings: tuple[str, ...], *, on_screen: bool = False) -> Config:
    """What the flags of `serve` make together.

    `on_screen`: the log goes to a terminal, where only what somebody must act on is shown, unless a level was asked for.
    """
    from gateway.config import ConfigProblem, load
    from security.policy.mapping import PolicyInvalid

    flags: dict[str, object] = {"node.home": None if home is None else str(home)}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise click.BadParameter(f"{setting!r}: write SECTION.KEY=VALUE, as in listeners.http.port=9443", param_hint="--set")
        flags[name.strip()] = value
    try:
        config = load(config_file, os.environ, flags)
        if on_screen and "logging.level" not in config.origins:
            config = load(config_file, os.environ, {**flags, "logging.level": "warning"})
        return config
    except (ConfigProblem, PolicyInvalid) as error:
        raise Unusable("the configuration cannot be used", str(error)) from None


def _in_words(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{where}"


def _advice(error: OSError) -> str:
    import errno

    return {
        errno.EADDRINUSE: "another process listens there: stop it, or choose a port with --set listeners.http.port=9443",
        errno.EADDRNOTAVAIL: "choose an address of this machine with --set listeners.http.host=127.0.0.1",
        errno.EACCES: "give this user the right, or choose another --home or a port above 1023",
        errno.ENOSPC: "make room on the disk, or choose another --home",
    }.get(error.errno or 0, "")
