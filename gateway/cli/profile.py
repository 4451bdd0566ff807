"""`<home>/cli.json`: how the one who started a node reaches it from the same machine without a flag.

The node's first start writes it, mode 0600, with the URL, the CA file and the admin token; later starts write a new URL when
the port changed and keep the token. Who can read the folder of keys beside it can do no more with the token than with those.
`<home>/authorization` holds the same token as the header line that `curl -H @file` reads, so that the token stays out of
process arguments and shell history.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gateway.cli.failures import Unusable
from security.errors import KeyFileDamaged, KeyFilePermissions
from security.files import PRIVATE_MODE, read_private, replace_file

PROFILE_NAME = "cli.json"
HEADER_NAME = "authorization"
PROFILE_BYTES_MAX = 16 * 1024
OTHERWISE = "give --url, --ca and --token-file instead"


@dataclass(frozen=True, slots=True)
class Profile:
    """`ca` is the file of certificates to trust, or None for the system's; `data` is the node's folder of sealed records;
    `kafka` its Kafka listener, as `SASL_SSL://host:port`, where it has one."""

    url: str
    ca: Path | None
    token: str | None = field(repr=False)
    data: Path | None = None
    kafka: str | None = None


def load_profile(home: Path) -> Profile | None:
    """None where the home has none. A file that others may read is refused, as ssh refuses such a key."""
    path = home / PROFILE_NAME
    try:
        return _parse(json.loads(read_private(path, PROFILE_BYTES_MAX)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except KeyFilePermissions as error:
        advice = f"run `chmod 600 {path}`, and revoke its token if it may have been read"
        raise Unusable(f"others than its owner may use {path}", f"its mode is {error.mode:04o}", advice) from None
    except KeyFileDamaged as error:
        raise Unusable(f"the profile {path} cannot be used", error.reason, OTHERWISE) from None
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise Unusable(f"the profile {path} cannot be used", str(error), OTHERWISE) from None


def save_profile(home: Path, profile: Profile) -> Path:
    """Both files, replaced whole: a reader sees the old one or the new one."""
    document = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(profile).items()}
    path = home / PROFILE_NAME
    replace_file(path, (json.dumps(document, indent=2) + "\n").encode(), PRIVATE_MODE)
    if profile.token is not None:
        replace_file(home / HEADER_NAME, f"Authorization: Bearer {profile.token}\n".encode(), PRIVATE_MODE)
    return path


def _parse(document: Any) -> Profile:
    url, ca, token, data = (document[name] for name in ("url", "ca", "token", "data"))
    kafka = document.get("kafka")
    if not isinstance(url, str) or not all(isinstance(text, str | None) for text in (ca, token, data, kafka)):
        raise TypeError("url, ca, token, data and kafka must be text")
    return Profile(url, Path(ca) if ca is not None else None, token, Path(data) if data is not None else None, kafka)
