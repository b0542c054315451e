"""The report's table of all figures: every measure of all patients together and of each hospital, with its interval."""

from typing import Any

from fl_contract.metrics import MEASURES
from fl_contract.metrics.classes import Evaluation
from fl_server.summary import RunFolder

SMALLER_IS_BETTER = frozenset({"brier", "calibration_error"})

SECTION = """
{% if figures %}
<h2>All figures</h2>
<p>{{ main_label }}: the final model on held-out patients. Below each figure, in grey: its 95 % interval.</p>
<div class="scroll"><table>
{{ head(["Figure", "All together"] + figures.sites) }}
<tbody>
{% for row in figures.rows %}
<tr><th scope="row">{{ row.name }}{% if row.smaller_is_better %}<small>smaller is better</small>{% endif %}</th>
{% for cell in row.cells %}
<td>{{ cell.value | figure }}<small>{{ cell.interval | interval }}</small></td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
<ul class="note">
{% for note in figures.notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{% endif %}
"""
"""Of the page's template."""


def list_figures(folder: RunFolder) -> dict[str, Any] | None:
    """Rows, columns and notes of the table; None where the main variant has no figures."""
    figures = folder.numbers["variants"].get(folder.main_kind)
    if figures is None:
        return None
    sites = [site for site in folder.sites if any(site in each["sites"] for each in figures.values())]
    return {
        "sites": sites,
        "rows": [
            {
                "name": f"{MEASURES[measure][0].upper()}{MEASURES[measure][1:]}",
                "smaller_is_better": measure in SMALLER_IS_BETTER,
                "cells": [
                    {"value": each["pooled"], "interval": each["interval"]},
                    *({"value": each["sites"].get(site), "interval": each["site_intervals"].get(site)}
                      for site in sites),
                ],
            }
            for measure, each in figures.items()
        ],
        "notes": _list_notes(folder),
    }  # fmt: skip


def _list_notes(folder: RunFolder) -> list[str]:
    notes = [
        "An interval says where the figure would lie for other patients of the same hospitals, in 19 of 20 cases; it "
        "does not say how another training run would differ. Shares have Wilson's interval, areas DeLong's or the "
        "jackknife's, means the jackknife's, and calibration errors are redrawn. It is too narrow where fewer than "
        "about 20 patients with, or without, the label make a figure; a dash stands where they say nothing."
    ]
    evaluation = folder.together.get(folder.main_kind)
    if not isinstance(evaluation, Evaluation):
        return notes
    if len(evaluation.scores.counts) > 1:
        notes.append(
            "Areas are means over the classes, each against the rest. Their errors are at most the means of the "
            "classes' errors, which are taken: these intervals are rather too wide."
        )
    if (decisions := evaluation.decisions) is not None:
        asked = evaluation.threshold
        note = f"Sensitivity, specificity and accuracy: a patient has the label if predicted with more than {asked:g}."
        if decisions.threshold != asked:
            note += f" With noise they are read off at {decisions.threshold:.3f}, the nearest bound of a bin."
        notes.append(note)
    if evaluation.noised is not None:
        notes.append(
            "Measured with noise: intervals hold the noise too, found by drawing it again. Every figure is read off "
            "eight bins."
        )
    return notes
