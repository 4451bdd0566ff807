"""`sprawl certificates`: who says by a certificate who they are, on listeners that ask for one (`tls = "mutual"`)."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from gateway.cli.connection import HOME_DEFAULT
from gateway.cli.display import print_facts, print_json
from gateway.cli.failures import Unusable
from gateway.cli.options import FILE, home_option, json_option
from gateway.cli.secret_file import check_new, keep_secret

DAYS_DEFAULT = 90


@click.group()
def certificates() -> None:
    """Issue client certificates by the CA of a node on this machine."""


@certificates.command()
@click.argument("name")
@click.option("--days", type=int, default=DAYS_DEFAULT, show_default=True, help="How long it is valid, 397 at most.")
@click.option("--out", type=FILE, required=True, help="Write its key and the certificate to this new PEM file, mode 0600.")
@home_option
@json_option
def issue(name: str, days: int, out: Path, home: Path | None, as_json: bool) -> None:
    """Issue a client certificate for NAME, the principal `cert:NAME`, whose rights are what the policy binds to that name.

    Whoever may read the node's CA key may do so anyway; this does it right, and puts a line into the audit trail. A certificate
    cannot be revoked: let it be valid for days rather than for years.

    \b
    sprawl certificates issue device-7 --out device-7.pem
    """
    check_new(out)
    pem, ends = _issued(home or HOME_DEFAULT, name, days)
    keep_secret(out, pem, "the certificate was issued", "name another file by --out")
    facts = {"principal": f"cert:{name}", "expires": ends.isoformat(timespec="seconds"), "file": str(out)}
    if as_json:
        print_json(facts)
    else:
        print_facts(facts, err=True)


def _issued(home: Path, name: str, days: int) -> tuple[str, datetime]:
    """Key and certificate as PEM, and when it ends; audited."""
    from cryptography import x509

    from gateway.cli.serve import load_config
    from gateway.observe.audit import AuditLog
    from security.certificates import ca_paths, issue_client
    from security.errors import SecurityError

    config = load_config(home, None, ())
    node, tls = config.node, config.tls
    if tls.client_ca or tls.certificate:
        raise Unusable(
            "this node believes the client certificates of other CAs", "tls.client_ca, tls.certificate", "ask one of them"
        )
    try:
        certificate, key = issue_client(ca_paths(Path(node.certs)), name, days, datetime.now(UTC))
        audit = AuditLog(Path(node.audit), lambda: time.time_ns() // 1_000_000, lines_max=1)
    except (SecurityError, OSError) as problem:
        raise Unusable("no certificate was issued", str(problem)) from None
    try:
        audit.record("certificates", None, "issue", f"certificate {name}", "allowed", f"by user {os.getuid()} of this machine")
    finally:
        audit.close()
    return (key + certificate).decode(), x509.load_pem_x509_certificate(certificate).not_valid_after_utc
