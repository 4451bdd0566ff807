"""A secret that is made for its user: shown once, or kept in a new file that they alone can read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gateway.cli.failures import Unusable
from gateway.cli.options import FILE
from security.files import PRIVATE_MODE, create_file


def out_option(noun: str) -> Callable[[Any], Any]:
    """`out: Path | None`."""
    return click.option("--out", type=FILE, help=f"Write the {noun} to this new file, mode 0600, and do not show it.")


def check_new(out: Path | None) -> None:
    """Before the secret is made. Unusable where there is such a file."""
    if out is not None and out.exists():
        raise Unusable(f"{out} exists already and is not overwritten", what_to_do="name a new file by --out")


def keep_secret(out: Path, secret: str, made: str, what_to_do: str) -> None:
    """Unusable, which says what was `made` all the same and what to do about it."""
    try:
        create_file(out, secret.encode(), PRIVATE_MODE)
    except OSError as error:
        raise Unusable(f"{made}, and could not be written to {out}", str(error.strerror), what_to_do) from None
