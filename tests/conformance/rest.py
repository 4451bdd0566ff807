"""Is the OpenAPI document true? schemathesis asks a real node: every operation, every check, with a token and without.

    python -m tests.conformance.rest [--examples 100] [--seed 1] [--only token|stranger]

No operation, no check, no phase is left out; what schemathesis is told besides stands with CONFIG and in `hooks.py`. Settings
only keep waits short, so that long-polls and event streams end.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import httpx

from tests.conformance.hooks import OWN_TOKEN_ID
from tests.services.node_process import NodeProcess

ROOT = Path(__file__).parent.parent.parent
# A poll waits no longer, and a stream ends after it: schemathesis reads every answer to its end.
WAIT_MS = 20
REQUEST_TIMEOUT_S = 60
PHASES = "examples,coverage,fuzzing,stateful"

# Statuses that schemathesis's own lists lack. 416: a position is well-formed, and outside the log of this moment (RFC 9110,
# 15.5.17). 413: there are more items than `maxItems` (15.5.14).
CONFIG = """
hooks = "tests.conformance.hooks"

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "416", "429", "5xx"]

[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "406", "409", "413", "415", "416", "422", "428", "429", "5xx"]
"""


class Verdict(NamedTuple):
    """`selected` and `tested` of so many `operations` of the document."""

    code: int
    operations: int
    selected: int
    tested: int
    report: str

    @property
    def clean(self) -> bool:
        return self.code == 0 and 0 < self.operations == self.selected == self.tested


def judge(folder: Path, *, examples: int, seed: int, with_token: bool, phases: str = PHASES) -> Verdict:
    """Against a fresh node."""
    (folder / "schemathesis.toml").write_text(CONFIG)
    with NodeProcess(folder / "node", **{"rest.wait_ms_max": WAIT_MS, "sse.lifetime_ms": WAIT_MS}) as node:
        asked = [
            *(str(Path(sys.executable).with_name("st")), "--config-file", "schemathesis.toml"),
            *("run", f"{node.url}/v1/openapi.json", f"--tls-verify={node.profile.ca}"),
            *("--checks=all", f"--phases={phases}", f"--max-examples={examples}", f"--seed={seed}"),
            *(f"--request-timeout={REQUEST_TIMEOUT_S}", "--generation-database=none", "--no-color"),
            *(["-H", f"Authorization: Bearer {node.token}"] if with_token else []),
        ]
        environ = os.environ | {"PYTHONPATH": str(ROOT), OWN_TOKEN_ID: node.token.split("_")[1]}
        done = subprocess.run(asked, cwd=folder, env=environ, capture_output=True, text=True)
        headers = {"authorization": f"Bearer {node.token}"}
        known = httpx.get(f"{node.url}/v1/whoami", headers=headers, verify=node.tls(), trust_env=False)
    if known.status_code != 200:
        return Verdict(1, 0, 0, 0, f"the token did not last through the run: {known.text}\n{done.stdout}")
    counts = re.search(r"Selected: (\d+)/(\d+)\s+Tested: (\d+)", done.stdout)
    selected, operations, tested = map(int, counts.groups()) if counts else (0, 0, 0)
    return Verdict(done.returncode, operations, selected, tested, done.stdout + done.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("token", "stranger"))
    asked = parser.parse_args()
    clean = True
    for who in ("token", "stranger"):
        if asked.only in (None, who):
            with tempfile.TemporaryDirectory() as folder:
                found = judge(Path(folder), examples=asked.examples, seed=asked.seed, with_token=who == "token")
            print(f"== as {'one with a token' if who == 'token' else 'a stranger'}: {'clean' if found.clean else 'NOT CLEAN'}")
            print(found.report, flush=True)
            clean = clean and found.clean
    return 0 if clean else 1


if __name__ == "__main__":
    raise SystemExit(main())
