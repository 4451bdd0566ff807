"""What a load run found, as facts for programs and as Markdown for people."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.cli.latencies import PERCENTILES, Latencies
from gateway.cli.load_generator import Outcome, Plan

EDGES_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
BAR_CHARS = 40


def facts(plan: Plan, outcome: Outcome, node: dict[str, Any]) -> dict[str, Any]:
    """Rates are over the time until the last acknowledgement."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "plan": msgspec.to_builtins(plan),
        "machine": {"cpus": len(os.sched_getaffinity(0)), "python": platform.python_version(), "system": platform.machine()},
        "node": node,
        "took_s": round(outcome.took_s, 3),
        "requests_per_s": round(outcome.acknowledged.count / outcome.took_s, 1) if outcome.took_s else 0.0,
        "records_per_s": round(outcome.records / outcome.took_s, 1) if outcome.took_s else 0.0,
        "records": outcome.records,
        "refused": dict(outcome.refused),
        "behind": outcome.behind,
        "acknowledged": outcome.acknowledged.facts(),
        "delivered": outcome.delivered.facts() if plan.subscribers else None,
    }


def markdown(plan: Plan, outcome: Outcome, found: dict[str, Any]) -> str:
    """A page: settings, rates, percentiles, and the distribution as bars."""
    machine, node = found["machine"], found["node"]
    rates = f"{found['records']:,} records, {found['records_per_s']:,.0f}/s in {found['requests_per_s']:,.0f} requests/s"
    lines = [
        f"# Load on {found['at']}",
        "",
        f"{plan.protocol}, {plan.connections} connections, {plan.rate:g} requests/s of {plan.records} records of {plan.size} B"
        f" for {plan.seconds:g} s, {plan.keys} keys, {plan.subscribers} subscribers. Node {node.get('version', '?')}, durability"
        f" {node.get('engine', {}).get('durability', '?')}; generator on {machine['cpus']} CPUs, Python {machine['python']}.",
        "",
        "| | |",
        "|---|---|",
        f"| acknowledged | {rates} |",
        f"| refused | {_refused(found)} |",
        f"| due and never sent | {outcome.behind:,} requests |",
        "",
        "Latency from the time a request was due (open loop):",
        "",
        "| | " + " | ".join(f"p{percent:g}" for percent in PERCENTILES) + " | max |",
        "|---|" + "---|" * (len(PERCENTILES) + 1),
        _row("acknowledged", outcome.acknowledged),
    ]
    if plan.subscribers:
        lines.append(_row("delivered to a subscriber", outcome.delivered))
    return "\n".join([*lines, "", "```text", *_bars(outcome.acknowledged), "```", ""])


def _refused(found: dict[str, Any]) -> str:
    return ", ".join(f"{count:,} x {reason}" for reason, count in sorted(found["refused"].items())) or "none"


def _row(name: str, latencies: Latencies) -> str:
    cells = [f"{latencies.percentile(percent) * 1_000:.1f} ms" for percent in PERCENTILES]
    return f"| {name} | " + " | ".join([*cells, f"{latencies.longest_s * 1_000:.1f} ms"]) + " |"


def _bars(latencies: Latencies) -> list[str]:
    """Each edge's share of all, as long as the share."""
    lines, before = [], 0
    for edge_s, count in latencies.columns([edge / 1_000 for edge in EDGES_MS]):
        if before == latencies.count:
            break
        share = (count - before) / latencies.count if latencies.count else 0.0
        lines.append(f"<= {edge_s * 1_000:>7,.1f} ms {'#' * round(share * BAR_CHARS):<{BAR_CHARS}} {share:6.1%}")
        before = count
    return lines
