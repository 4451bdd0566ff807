"""Files of keys and certificates: born with their mode, seen whole or not at all.

A file is written under a name of its own in the same folder, synced, and only then given its name, so that neither a
crash nor a power cut leaves half a key behind, and no moment passes in which others could read it.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from security.errors import KeyFileDamaged, KeyFilePermissions

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644
OTHERS_BITS = 0o077


def create_file(path: Path, data: bytes, mode: int) -> None:
    """Make a file that is not there yet. Raises FileExistsError, and leaves the one that is there alone."""
    with _staged(path, data, mode) as staged:
        os.link(staged, path)  # fails where a name exists; rename would replace it
    sync_folder(path.parent)


def replace_file(path: Path, data: bytes, mode: int) -> None:
    """Put a new file in the place of an old one, or of none; readers see the old or the new."""
    with _staged(path, data, mode) as staged:
        os.replace(staged, path)
    sync_folder(path.parent)


def read_private(path: Path, bytes_max: int) -> bytes:
    """What a file holds that only its owner may use.

    Raises FileNotFoundError, KeyFilePermissions when group or others may use it, KeyFileDamaged when it is no regular file,
    cannot be read or is longer than `bytes_max`. All is asked of the open file, so it cannot be swapped in between.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe in its place must not hang the start
    except PermissionError:
        raise KeyFileDamaged(path, "this user may not read it") from None
    try:
        _check_private(path, os.fstat(descriptor))
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(bytes_max + 1)
    finally:
        os.close(descriptor)
    if len(data) > bytes_max:
        raise KeyFileDamaged(path, f"it has more than {bytes_max} bytes")
    return data


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileDamaged(path, "it is not a regular file")
    if status.st_mode & OTHERS_BITS:
        raise KeyFilePermissions(path, stat.S_IMODE(status.st_mode))


def sync_folder(folder: Path) -> None:
    """A new name is durable only when the folder that holds it is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _staged(path: Path, data: bytes, mode: int) -> Iterator[Path]:
    staged = path.with_name(f".{path.name}.{os.getpid()}.new")
    with suppress(FileNotFoundError):
        staged.unlink()  # what a crashed process of the same id left behind
    try:
        _write_synced(staged, data, mode)
        yield staged
    finally:
        with suppress(FileNotFoundError):
            staged.unlink()


def _write_synced(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
