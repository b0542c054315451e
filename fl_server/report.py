"""The only place that turns a run folder into ``report.html``: one page that needs nothing else, not even a network.

It answers a study lead ("was it worth joining?") and a privacy officer ("what was promised, spent, and released without
noise?"). Every figure and every claim about this run is computed from the folder's files.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_contract.metrics import MEASURES
from fl_contract.metrics.classes import Evaluation
from fl_contract.metrics.measurement import Measurement
from fl_server import plots
from fl_server.best_round import BEST_MODEL_FILE
from fl_server.report_figures import list_figures
from fl_server.report_privacy import describe_central, describe_privacy, say_why_no_privacy
from fl_server.report_template import (
    render_page,
    write_change,
    write_epsilon,
    write_figure,
    write_names,
    write_rounds,
)
from fl_server.report_words import WORDS, OutcomeWords, target_unit, words_of
from fl_server.run_record import OUTSTANDING, write_atomically
from fl_server.summary import Absence, RunFolder, Variant, last_spend, local_sites, subtract

NO_CLEAR_CHANGE = 0.005
"""A change of the measure that is smaller than this, as printed to three decimals, is called none."""

FEW_PATIENTS = 20
"""Held-out patients with or without the label below which a hospital's figures are called hints."""

_ORDER = ("local", "private", "federated", "pooled")  # of columns: what joining changes stands side by side


def write_report(out: Path) -> Path:
    """Write OUT/report.html.

    Raises:
        RunError: The folder holds no run, or a file of it is damaged.
    """
    folder = RunFolder.read(out)
    path = out / "report.html"
    write_atomically(path, render_page(_build_view(folder)))
    return path


def _build_view(folder: RunFolder) -> dict[str, Any]:
    columns, words = _list_columns(folder), words_of(folder)
    headline, sentences = _answer(folder)
    simulation = folder.main.run.settings.get("simulation") or {}
    return {
        "run": folder.main.run,
        "runs": [
            {"name": name, "run": variant.run, "rounds": len({each.round for each in variant.rounds})}
            for name, variant in folder.variants.items()
        ],
        "rounds": len({each.round for each in folder.main.rounds}),
        "sites": folder.sites,
        "alerts": _list_alerts(folder),
        "answer": {"headline": headline, "sentences": sentences},
        "tiles": _list_tiles(folder),
        "columns": [(folder.labels | {"change": "Change by joining"})[name] for name in columns],
        "rows": [_score_row(folder, columns, site) for site in (None, *folder.sites)],
        "meaning": _say_meaning(folder, words),
        "words": words,
        "notes": _list_notes(folder),
        "figures": list_figures(folder),
        "plots": _draw_plots(folder),
        "main_label": folder.labels[folder.main_kind],
        "traffic": _list_traffic(folder),
        "absences": [row for name, variant in folder.variants.items() for row in _list_absences(name, variant)],
        "privacy": describe_privacy(folder),
        "no_privacy_reason": say_why_no_privacy(folder),
        "central": describe_central(folder.main),
        "unprotected": [
            name for name, each in folder.variants.items() if not each.is_private and each.central_spend is None
        ],
        "statistics": _has_statistics(folder),
        "told_capacity": [site for site, each in folder.main.run.sites.items() if each.num_cores is not None],
        "dataset": simulation.get("dataset", ""),
    }


def _has_statistics(folder: RunFolder) -> bool:
    schema = folder.main.run.settings.get("schema") or {}
    return any(
        each.get("scale") in ("standard", "robust") or each.get("missing") in ("mean", "median", "most-frequent")
        for each in (schema, *(schema.get("features") or ()))
    )


def _answer(folder: RunFolder) -> tuple[str, list[str]]:
    if folder.joint is None:
        run = folder.main.run
        return "The files cannot say.", [
            f"No jointly trained model was measured; the run's status is {run.status}{': ' if run.reason else ''}"
            f"{run.reason.rstrip('.')}."
        ]
    changes = {site: change for site in folder.sites if (change := folder.change(site)) is not None}
    sentences = [_say_joint(folder, folder.joint), _say_gain(folder), _say_beside(folder, folder.joint)]
    sentences += [_say_cost(folder), _say_ideal(folder), _say_changes(folder, changes), _say_spend(folder)]
    return _say_headline(folder, changes), [sentence for sentence in sentences if sentence]


def _say_headline(folder: RunFolder, changes: Mapping[str, float]) -> str:
    gain = folder.change()
    if gain is None:
        return "The files cannot say: the models are not there to compare joining with staying alone."
    sign = _sign(gain)
    if sign == "same":
        return "Overall it made no clear difference."
    if not _is_clear(folder):
        return f"Perhaps{'' if sign == 'gained' else ' not'}: the difference is small against chance."
    if sign == "lost":
        return "Overall no: joining made a worse model than the hospitals have alone."
    losers = [site for site, change in changes.items() if _sign(change) == "lost"]
    return f"Overall yes, but not for {write_names(losers)}." if losers else "Yes: joining made a better model."


def _say_joint(folder: RunFolder, joint: str) -> str:
    evaluation, words = folder.together[joint], words_of(folder)
    interval = folder.interval(joint)
    margin = f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    about = "" if evaluation.noised is None else "about "
    how = " with privacy" if joint == "private" and folder.variants[joint].is_private else ""
    trained = f"the model that the hospitals trained jointly{how} reaches"
    if folder.variants[joint].run.personal:
        trained = f"the hospitals' personal models, trained jointly{how} and each measured at its own hospital, reach"
    return (
        f"On all {about}{evaluation.num_examples:,} held-out {words.records} together, {trained} {words.figure} of "
        f"{write_figure(folder.figure(joint))}{margin}."
    )


def _say_meaning(folder: RunFolder, words: OutcomeWords) -> str:
    several = words.over_several if _is_multiclass(folder) else ""
    beside = f" Below it, in grey: {words.beside.meaning}." if words.beside is not None else ""
    return f"{MEASURES[folder.measure]} on held-out {words.records}: {words.meaning}{several}.{beside}"


def _say_gain(folder: RunFolder) -> str:
    alone, gain = folder.figure("local"), folder.change()
    if alone is None or gain is None:
        return "Whether that is better than staying alone cannot be told: there are no models trained alone to compare."
    records = words_of(folder).records
    start = f"A model trained at one hospital alone reaches {write_figure(alone)} on the same {records} on average"
    if abs(round(gain, 3)) == 0:
        return f"{start}: joining changed it by less than 0.001."
    outcome = {"gained": "joining raised it by", "lost": "joining lowered it by", "same": "joining changed it by only"}
    doubt = "" if _is_clear(folder) else ", which is within that interval and may be chance"
    return f"{start}: {outcome[_sign(gain)]} {abs(gain):.3f}{doubt}."


def _is_clear(folder: RunFolder) -> bool:
    gain, alone, interval = folder.change(), folder.figure("local"), folder.interval(folder.joint)
    if gain is None or alone is None or interval is None or _sign(gain) == "same":
        return True
    return not interval[0] <= alone <= interval[1]


def _say_beside(folder: RunFolder, joint: str) -> str:
    beside, variants = words_of(folder).beside, folder.numbers["variants"]
    if beside is None:
        return ""
    values = [variants.get(kind, {}).get(beside.key, {}).get("pooled") for kind in (joint, "local")]
    if None in values:
        return ""
    written = [beside.write(value, target_unit(folder)) for value in values]
    return beside.sentence.format(joint=written[0], alone=written[1])


def _say_cost(folder: RunFolder) -> str:
    private = folder.variants.get("private")
    cost = subtract(folder.figure("federated"), folder.figure("private"))
    if private is None or not private.is_private or cost is None:
        return ""
    without = write_figure(folder.figure("federated"))
    if round(cost, 3) < NO_CLEAR_CHANGE:
        return f"Privacy cost no clear loss: the same training without noise reaches {without}."
    return f"Privacy cost {cost:.3f}: the same training without noise reaches {without}."


def _say_ideal(folder: RunFolder) -> str:
    ideal = folder.figure("pooled")
    return "" if ideal is None else f"With all data in one place it would have been {write_figure(ideal)}."


def _say_changes(folder: RunFolder, changes: Mapping[str, float]) -> str:
    if not changes:
        return ""
    parts = []
    for sign, verb in (("gained", "gained"), ("lost", "lost"), ("same", "saw no clear change")):
        names = [f"{site} ({write_change(change)})" for site, change in changes.items() if _sign(change) == sign]
        if names:
            parts.append(f"{write_names(names)} {verb}")
    return f"On their own {words_of(folder).records}, {'; '.join(parts)}."


def _say_spend(folder: RunFolder) -> str:
    spend = [report.epsilon for report in last_spend(folder.variants).values() if report.epsilon is not None]
    if spend:
        target = folder.main.run.privacy.epsilon
        return f"No hospital spent more than epsilon {write_epsilon(max(spend))} of the {target:g} that was agreed."
    return "" if folder.main.is_private else "There was no differential privacy."


def _list_alerts(folder: RunFolder) -> list[str]:
    run, terms = folder.main.run, folder.main.run.privacy
    alerts = []
    if run.status in ("running", "stopped", "failed"):
        reason = f": {run.reason}" if run.reason else "."
        alerts.append(f"This run is not a finished one; its status is {run.status}{reason}")
    for site, report in last_spend(folder.variants).items():
        records = run.sites[site].num_examples if site in run.sites else report.num_examples
        if report.epsilon is not None and report.epsilon > terms.epsilon * (1 + 1e-9):
            spent = write_epsilon(report.epsilon)
            alerts.append(f"{site} spent epsilon {spent}, more than the {terms.epsilon:g} that was promised.")
        if records and report.delta is not None and report.delta * records >= 1:
            alerts.append(f"{site} has delta {report.delta:g}; expected below 1 / {records}, one over its records.")
    return alerts


def _list_tiles(folder: RunFolder) -> list[dict[str, str]]:
    measure = MEASURES[folder.measure]
    names = {
        "local": f"{measure} alone (mean of the hospitals' own models)",
        **{kind: f"{measure} {folder.labels[kind][0].lower()}{folder.labels[kind][1:]}" for kind in _ORDER[1:]},
    }
    tiles = [
        {"value": write_figure(value), "label": names[kind]}
        for kind in _ORDER
        if (value := folder.figure(kind)) is not None
    ]
    spend = [report.epsilon for report in last_spend(folder.variants).values() if report.epsilon is not None]
    if spend:
        target = folder.main.run.privacy.epsilon
        tiles.append({"value": write_epsilon(max(spend)), "label": f"largest epsilon spent, of {target:g}"})
    elif not folder.main.is_private:
        tiles.append({"value": "none", "label": "no differential privacy"})
    return tiles


def _list_columns(folder: RunFolder) -> list[str]:
    """Kinds in the order of columns, and ``change`` after the one that stands for joining."""
    kinds = [kind for kind in _ORDER if kind in folder.numbers["variants"]]
    if folder.joint is not None and "local" in kinds:
        kinds.insert(kinds.index(folder.joint) + 1, "change")
    return kinds


def _score_row(folder: RunFolder, columns: Sequence[str], site: str | None) -> dict[str, Any]:
    measured = folder.together.get(folder.joint or "") if site is None else folder.own.get(site)
    return {
        "name": site or "All together",
        "is_total": site is None,
        "patients": measured.num_examples if measured else None,
        "cells": [
            _change_cell(folder, site) if name == "change" else _score_cell(folder, name, site) for name in columns
        ],
    }


def _score_cell(folder: RunFolder, kind: str, site: str | None) -> dict[str, Any]:
    measures = folder.numbers["variants"][kind]
    picked = {name: each["pooled"] if site is None else each["sites"].get(site) for name, each in measures.items()}
    beside = words_of(folder).beside
    value = None if beside is None else picked.get(beside.key)
    written = "" if beside is None or value is None else beside.write(value, target_unit(folder))
    return {"is_change": False, "value": picked[folder.measure], "beside": written}


def _change_cell(folder: RunFolder, site: str | None) -> dict[str, Any]:
    change = folder.change(site)
    return {"is_change": True, "change": change, "sign": None if change is None else _sign(change)}


def _list_notes(folder: RunFolder) -> list[str]:
    notes, words = [], words_of(folder)
    alone = {site: each for site, each in local_sites(folder.variants).items() if each.evaluations}
    if alone:
        notes.append(
            "Alone, a hospital's row shows its own model on its own patients; the row of all together shows the mean "
            f"over {len(alone)} hospitals' own models, each measured on the patients of all."
        )
        if not any(each.is_private for each in alone.values()):
            notes.append("Models trained alone were trained without noise: a hospital that shares nothing needs none.")
    if any(each.run.personal for each in folder.variants.values()):
        notes.append(
            "Figures of personal models are of as many models as there are hospitals, each measured on its own "
            "hospital's patients only: no single model reaches them, and model.safetensors holds only what is shared."
        )
    if folder.joint and alone:
        notes.append(f"A change of less than {NO_CLEAR_CHANGE} is called no clear change.")
    if few := [site for site in folder.sites if site in folder.own and _has_few_patients(folder.own[site])]:
        notes.append(
            f"Take the figures of {write_names(few)} as hints: fewer than {FEW_PATIENTS} held-out "
            f"{words.records}{words.few}."
        )
    values = {site: next(iter(folder.own[site].figures().values())) for site in folder.sites if site in folder.own}
    if undefined := [site for site, value in values.items() if math.isnan(value)]:
        notes.append(
            f"No {MEASURES[folder.measure]} for {write_names(undefined)}: the held-out {words.records} there "
            f"{words.why_undefined}."
        )
    if scales := [each.noised.noise_scale for each in folder.own.values() if each.noised is not None]:
        notes.append(
            f"Measurements were sent with noise: standard deviation up to {max(scales):.1f} patients in each count of "
            "a hospital. Numbers of patients, accuracy and AUROC are estimates; one hospital's alone are rough."
        )
    measured = {frozenset(each.evaluations) for each in folder.variants.values() if each.evaluations}
    if len(measured) > 1:
        notes.append(
            "Not every model was measured on the same hospitals' patients, so rows of all together differ by that."
        )
    return notes + _list_selection_notes(folder)


def _list_selection_notes(folder: RunFolder) -> list[str]:
    """Which model the run started from, and that its best round was chosen on held-out patients."""
    run, records, notes = folder.main.run, words_of(folder).records, []
    if run.starts_from is not None:
        origin = f"run {run.starts_from.run}" if run.starts_from.run else run.starts_from.file
        verb = "goes on from" if run.starts_from.kind == "continue-from" else "started from"
        notes.append(
            f"Joint training {verb} the model of {origin} (SHA-256 {run.starts_from.sha256[:12]}…); models trained "
            "alone or on pooled data did not start from it."
        )
    if run.best_round is not None:
        rough = ", which are noised," if any(each.noised is not None for each in folder.own.values()) else ""
        notes.append(
            f"The lowest loss on all held-out {records} together was {run.best_round.loss:.4g}, after round "
            f"{run.best_round.round}; {BEST_MODEL_FILE} holds the model of then. It was chosen by measurements{rough} "
            f"on the held-out {records} themselves, so its figures are optimistic: expect worse on others. The figures "
            "on this page are of the run's own model, which was not chosen so."
        )
    return notes


def _has_few_patients(evaluation: Measurement) -> bool:
    if not isinstance(evaluation, Evaluation):
        return evaluation.num_examples < FEW_PATIENTS
    counts = evaluation.scores.counts
    sides = counts[0] if len(counts) == 1 else counts[:, 1]
    return bool(sides.sum(axis=1).min() < FEW_PATIENTS)


def _is_multiclass(folder: RunFolder) -> bool:
    return any(len(evaluation.scores.counts) > 1 for evaluation in _of_classes(folder.own).values())


def _of_classes(measured: Mapping[str, Measurement]) -> dict[str, Evaluation]:
    return {name: each for name, each in measured.items() if isinstance(each, Evaluation)}


def _draw_plots(folder: RunFolder) -> list[plots.Plot]:
    styles, labels, rounds = plots.site_styles(folder.sites), folder.labels, folder.main.rounds
    variants = {kind: folder.numbers["variants"][kind] for kind in _ORDER if kind in folder.numbers["variants"]}
    declared = {site: each.num_examples for site, each in folder.main.run.sites.items()}
    drawn = [plots.plot_comparison(variants, folder.measure, folder.sites, labels)] if variants else []
    words = words_of(folder)
    if folder.sites and words is WORDS[Evaluation.KIND]:
        drawn.append(plots.plot_sizes(declared, _of_classes(folder.own), _class_names(folder), styles))
    if rounds:
        drawn.append(plots.plot_rounds(rounds, "loss", styles, words.loss_unit))
        drawn.append(plots.plot_rounds(rounds, folder.measure, styles))
    if rounds and words.beside is not None and not words.beside.is_share:
        drawn.append(plots.plot_rounds(rounds, words.beside.key, styles, target_unit(folder)))
    if scored := _of_classes(folder.together):
        drawn += [plots.plot_roc(scored, labels), plots.plot_calibration(scored, labels)]
    return drawn


def _class_names(folder: RunFolder) -> list[str]:
    widths = {len(evaluation.scores.counts) for evaluation in _of_classes(folder.own).values()}
    num_classes = max(2, *widths) if widths else 2
    schema = folder.main.run.settings.get("schema") or {}
    names = [str(name) for name in schema.get("classes") or ()]
    return names if len(names) == num_classes else [f"class {number}" for number in range(num_classes)]


def _list_traffic(folder: RunFolder) -> list[dict[str, Any]]:
    declared, rounds = folder.main.run.sites, folder.main.rounds
    rows: list[dict[str, Any]] = []
    for site in folder.sites:
        entries = [each.sites[site] for each in rounds if site in each.sites]
        absences = [each.missing[site] for each in rounds if site in each.missing]
        rows.append({
            "name": site,
            "is_total": False,
            "records": declared[site].num_examples if site in declared else None,
            "trained": sum(entry.num_examples is not None for entry in entries),
            "missed": sum(absence.code != OUTSTANDING for absence in absences),
            "bytes_down": sum(entry.bytes_down for entry in entries),
            "bytes_up": sum(entry.bytes_up for entry in entries),
            "seconds": sum(entry.seconds for entry in entries),
        })  # fmt: skip
    counted = ("records", "trained", "missed", "bytes_down", "bytes_up", "seconds")
    total = {key: sum(row[key] or 0 for row in rows) for key in counted}
    return [*rows, {"name": "All together", "is_total": True} | total]


def _list_absences(name: str, variant: Variant) -> list[dict[str, str]]:
    rounds: dict[tuple[str, Absence], list[int]] = defaultdict(list)
    for each in variant.rounds:
        for site, absence in each.missing.items():
            rounds[site, absence].append(each.round)
        for site, entry in each.sites.items():
            if entry.staleness:
                late = f"Its reply to an earlier round was folded in, {entry.staleness} round(s) late."
                rounds[site, Absence(code="late", reason=late)].append(each.round)
    found = [(site, absence, "before round 1") for site, absence in variant.run.refused.items()]
    found += [(site, absence, write_rounds(numbers)) for (site, absence), numbers in rounds.items()]
    return [
        {"site": site, "variant": name, "when": when, "code": absence.code, "reason": absence.reason}
        for site, absence, when in found
    ]


def _sign(change: float) -> str:
    return "same" if abs(round(change, 3)) < NO_CLEAR_CHANGE else "gained" if change > 0 else "lost"
