"""What the report says about privacy: promised, spent, and released without noise; all computed from the files."""

from collections.abc import Sequence
from typing import Any

from fl_server import plots
from fl_server.summary import PrivacyTerms, RunFolder, Variant, last_spend, natural_order
from privacy.accounting import Spend
from privacy.group import compute_patient_epsilon

RECORDS_OF_A_PATIENT = (2, 4, 8)
"""For which the report of a study by record says what a patient's own epsilon is."""


def describe_privacy(folder: RunFolder) -> dict[str, Any] | None:
    """Terms, spends and measurements of the private run; None if there is none."""
    private = folder.variants.get("private")
    if private is None or not private.is_private:
        return None
    terms, rows = private.run.privacy, []
    for site, report in last_spend(folder.variants).items():
        declared = private.run.sites.get(site)
        trained = [each.sites[site] for each in private.rounds if site in each.sites and each.sites[site].steps]
        rows.append({
            "site": site,
            "epsilon": report.epsilon,
            "delta": report.delta,
            "noise_multiplier": declared.noise_multiplier if declared else None,
            "records": declared.num_examples if declared else None,
            "rounds": len(trained),
            "steps": sum(each.steps or 0 for each in trained),
        })  # fmt: skip
    styles = plots.site_styles(folder.sites)
    plot = plots.plot_epsilon(private.rounds, terms.epsilon, styles) if rows else None
    return {
        "terms": terms,
        "rows": rows,
        "plot": plot,
        "measurements": _describe_measurements(private),
        "patients": _protect_patients(terms, rows) if terms.unit == "record" else [],
    }


def _protect_patients(terms: PrivacyTerms, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a study by record spends on a patient with several records, at the hospital where that is most."""
    spent = [row for row in rows if row["noise_multiplier"] and row["steps"]]
    if not spent:
        return []
    most = max(spent, key=lambda row: row["epsilon"])
    spend = Spend(noise_multiplier=most["noise_multiplier"], sampling_rate=terms.sampling_rate, steps=most["steps"])
    return [
        {"records": count, "epsilon": compute_patient_epsilon([spend], terms.delta, records_per_patient=count)}
        for count in RECORDS_OF_A_PATIENT
    ]


def _describe_measurements(private: Variant) -> dict[str, Any]:
    """Which hospitals measured exactly, and what the others spent on their held-out patients and with what noise."""
    last = {site: report for each in private.rounds for site, report in each.sites.items() if report.test_examples}
    noised = [
        {"site": site, "epsilon": last[site].measured_epsilon, "noise_scale": last[site].noise_scale}
        for site in natural_order(last)
        if last[site].noise_scale is not None
    ]
    exact = [site for site in natural_order(last) if last[site].noise_scale is None]
    rounds = sum(any(report.test_examples for report in each.sites.values()) for each in private.rounds)
    return {"noised": noised, "exact": exact, "rounds": rounds}


def describe_central(variant: Variant) -> dict[str, Any] | None:
    """What was promised and spent for a hospital as a whole; None without hospital-level privacy."""
    spend, terms = variant.central_spend, variant.run.settings.get("central-privacy")
    return {"spend": spend, "target": terms["epsilon"], "clip_norm": terms["clip-norm"]} if spend and terms else None


def say_why_no_privacy(folder: RunFolder) -> str:
    """Why the page has no private run to describe, in one sentence."""
    if "private" in folder.variants:
        return "The study's settings say privacy.mechanism = none."
    return "This folder holds no run with privacy."
