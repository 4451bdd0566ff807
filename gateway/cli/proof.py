"""One marked record, seen from both sides: clear through the gateway, sealed on the disk, and nowhere else.

The search has a control: it must find the topic's id, which the clear header of every sealed batch holds. A search that finds
nothing at all would prove nothing.
"""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import msgspec
import uuid_utils

from broker.log.layout import BATCH_HEADER_BYTES
from gateway.cli.client import Client
from gateway.cli.display import show_size, show_time
from gateway.cli.evidence import HEX_ROW_BYTES, SealedBatch, Search, disguises, find_batch, hex_rows, search
from gateway.cli.failures import Refused, Unusable, printable
from gateway.cli.profile import Profile
from gateway.cli.telemetry import TOPIC

CONTROL = "topic id"
HEX_ROWS_MAX = 16


@dataclass(frozen=True, slots=True)
class Proof:
    """`clear` is the record as the gateway gives it to one who may read it."""

    marker: str
    clear: dict[str, Any]
    sealed: SealedBatch
    searched: Search

    @classmethod
    def make(cls, client: Client, home: Path, profile: Profile) -> Proof:
        marker = f"sprawl-demo-{secrets.token_hex(12)}"
        receipt = _publish(client, marker)
        topic_id = uuid.UUID(client.call("GET", f"/v1/topics/{TOPIC}")["id"]).bytes
        clear = client.call("GET", f"/v1/records/{TOPIC}/{quote('proof/' + marker)}", query={"envelope": "true"})
        data = profile.data or home / "data"
        sealed = find_batch(data, topic_id, receipt["partition"], receipt["offset"])
        if sealed is None:
            raise Unusable(f"the record is not in {data}", "the demo reads the files of a node on this machine, by the same user")
        needles = {**disguises(marker), CONTROL: topic_id}
        searched = search(home, needles)
        if not data.resolve().is_relative_to(home.resolve()):
            searched.add(search(data, needles))
        return cls(marker, clear, sealed, searched)

    @property
    def clear_places(self) -> list[str]:
        """Where the marker lies in clear, in any of its forms."""
        return [f"{form}: {place}" for form, places in self.searched.found.items() if form != CONTROL for place in places]

    def check(self) -> None:
        if self.clear_places:
            raise Refused({"title": "the marker lies about in clear", "detail": "; ".join(self.clear_places)})
        if not self.searched.found[CONTROL]:
            raise Refused(
                {"title": "the search proves nothing", "detail": "it did not find the topic's id, which is there in clear"}
            )

    def facts(self) -> dict[str, Any]:
        header = self.sealed.header
        return {
            "marker": self.marker,
            "clear_record": self.clear,
            "sealed_batch": {
                "file": str(self.sealed.path),
                "position": self.sealed.position,
                "bytes": len(self.sealed.data),
                "topic_id": str(uuid.UUID(bytes=header.topic_id)),
                "partition": header.partition,
                "base_offset": header.base_offset,
                "records": header.records,
                "hex": self.sealed.data.hex(),
            },
            "searched_files": self.searched.files,
            "searched_bytes": self.searched.bytes,
            "marker_in_clear": self.clear_places,
            "control_found_in_files": len(self.searched.found[CONTROL]),
        }

    def show(self) -> None:
        self._show_clear()
        self._show_sealed()
        self._show_search()

    def _show_clear(self) -> None:
        click.secho("\nThrough the gateway, for one who may read it", bold=True)
        click.echo(
            "  " + printable(msgspec.json.encode(self.clear).decode()).replace(self.marker, click.style(self.marker, fg="green"))
        )

    def _show_sealed(self) -> None:
        header, size = self.sealed.header, len(self.sealed.data)
        click.secho("\nThe same record on the disk", bold=True)
        facts = {
            "file": f"{self.sealed.path}, byte {self.sealed.position}, {size} bytes",
            "header": f"topic id {uuid.UUID(bytes=header.topic_id)}, partition {header.partition}, "
            f"offset {header.base_offset}, {header.records} record{'' if header.records == 1 else 's'}",
            "": f"commit sequence {header.sequence}, written {show_time(header.append_time_ms)}",
            "seal": f"AES-256-GCM, key {header.key_id:08x}, nonce {header.nonce.hex()}, tag {self.sealed.data[-16:].hex()}",
        }
        for name, text in facts.items():
            click.echo(f"  {click.style(name.ljust(7), dim=True)} {text}")
        clear_bytes = BATCH_HEADER_BYTES + 8 * header.key_hashes
        for number, row in enumerate(hex_rows(self.sealed.data, HEX_ROWS_MAX)):
            click.echo(
                "  " + (click.style(row, dim=True) if number * HEX_ROW_BYTES < clear_bytes else click.style(row, fg="red"))
            )
        if size > HEX_ROWS_MAX * HEX_ROW_BYTES:
            click.secho(f"  and {size - HEX_ROWS_MAX * HEX_ROW_BYTES} bytes more", dim=True)
        click.secho(
            f"  first {clear_bytes} bytes: header and keyed hashes, authenticated; the rest: ciphertext and tag", dim=True
        )

    def _show_search(self) -> None:
        click.secho("\nThe marker, looked for in every file of the node", bold=True)
        click.echo(f"  {self.searched.files} files, {show_size(self.searched.bytes)}; as {', '.join(disguises(self.marker))}")
        places = self.clear_places
        verdict = click.style("found nowhere", fg="green") if not places else click.style("FOUND: " + "; ".join(places), fg="red")
        click.echo(f"  marker in value, key and header: {verdict}")
        click.echo(f"  control, the topic id in clear headers: found in {len(self.searched.found[CONTROL])} files")


def _publish(client: Client, marker: str) -> dict[str, Any]:
    record = {
        "id": str(uuid_utils.uuid7()),
        "key": f"proof/{marker}",
        "headers": {"proof": marker},
        "value": {"note": f"if you can read {marker} on the disk, it is not sealed"},
    }
    return client.publish(TOPIC, msgspec.json.encode(record), "durable")[0]
