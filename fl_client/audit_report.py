"""The only place that puts an audit into words: tables for a person, and a record for a file."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fl_client.audit import ModelAudit
from fl_contract.study import Study
from privacy.audit import CONFIDENCE, Audit, Check


def print_training_audit(study: Study, audit: Audit, console: Console) -> None:
    """Show claim, measurements and verdict."""
    plan, steps = audit.plan, audit.plan.total_spend.steps
    table = Table(
        title=f"Private training of {study.name}: {steps} steps on {audit.guesses.num_canaries} canaries",
        title_justify="left",
        pad_edge=False,
    )
    table.add_column("check", overflow="fold")
    for name in ("plan says", "measured", "chance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for check in audit.checks:
        table.add_row(*_row(check, audit), "[red]contradicts[/]" if check.contradicts else "[green]agrees[/]")
    console.print(table)
    console.print(
        f"claimed  ε <= {audit.claimed_epsilon:.3f} at δ {plan.delta:g} for {steps} steps"
        f" (the study: ε {plan.epsilon:g} for {study.num_rounds * study.privacy.steps_per_round})\n"
        f"shown    ε >= {audit.lower_bound:.2f} at δ {audit.audit_delta:g}, {CONFIDENCE:.0%} confidence"
        f" ({audit.guesses.num_right} of {audit.guesses.num_guesses} guesses right)"
    )
    if audit.contradictions:
        names = ", ".join(check.name for check in audit.contradictions)
        console.print(f"[red]This training does not do what its plan says:[/] {names}.")
        console.print("Take part in no private round until the cause is found.")
    else:
        console.print("[green]Nothing contradicts the claim.[/]")
        console.print("Correct training is contradicted in at most 1 of 10,000 audits.")


def print_model_audit(study: Study, audit: ModelAudit, console: Console) -> None:
    """Show how well each attack told training patients from held-out ones."""
    table = Table(
        title=f"Membership attacks on a model of {study.name}:"
        f" {audit.loss.num_members} trained, {audit.loss.num_others} held out",
        title_justify="left",
        pad_edge=False,
    )
    table.add_column("attack", overflow="fold")
    for name in ("AUC (95 %)", "TPR at 1 % FPR (95 %)", "ε at least"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, result in (("loss", audit.loss), ("likelihood ratio", audit.likelihood_ratio)):
        table.add_row(
            name,
            f"{result.auc:.3f} ({_interval(result.auc_interval)})",
            f"{result.true_positive_rate:.3f} ({_interval(result.true_positive_interval)})",
            f"{result.epsilon_lower_bound:.2f}",
        )
    console.print(table)
    if contradicts_claim(study, audit):
        console.print(f"[red]The attacks show more than the study's ε {study.privacy.epsilon:g} allows.[/]")
    else:
        console.print("An AUC of 0.5 is blind. A weak attack does not prove that a model is safe.")
    console.print("No ε covers these figures of patients; keep them inside the hospital.")


def contradicts_claim(study: Study, audit: ModelAudit) -> bool:
    """Whether an attack on a private study's model shows more than its epsilon."""
    shown = max(audit.loss.epsilon_lower_bound, audit.likelihood_ratio.epsilon_lower_bound)
    return study.is_private and shown > study.privacy.epsilon


def write_record(path: Path, study: Study, audit: Audit | ModelAudit) -> None:
    """Write an audit with its study, versions and time as JSON, readable by its owner only."""
    record = {
        "study": study.name,
        "fingerprint": study.fingerprint,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("numpy", "opacus", "torch")},
        "audit": asdict(audit),
    }
    if isinstance(audit, Audit):
        record["contradictions"] = [check.name for check in audit.contradictions]
    path.touch(mode=0o600)
    path.write_text(json.dumps(_finite(record), indent=2, allow_nan=False) + os.linesep, encoding="utf-8")


def _row(check: Check, audit: Audit) -> tuple[str, str, str, str]:
    if check.name == "epsilon":
        name = f"epsilon at delta {audit.audit_delta:g}"
        return name, f"<= {check.claimed:.3f}", f">= {check.measured:.3f}", f"{check.p_value:.2g}"
    return check.name, f"{check.claimed:.4f}", f"{check.measured:.4f}", f"{check.p_value:.2g}"


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f}–{interval[1]:.3f}"


def _finite(value: Any) -> Any:
    """The same with null in place of an infinity, such as a signal over noise that is off: JSON has none."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
