"""The only place that draws: each function returns one plot with its caption and its words for who cannot see it.

Colours are those of Okabe & Ito (2008), which stay apart for colour-blind readers; a line style or marker always says
the same again. A hospital looks the same in every plot. Nothing here touches matplotlib's global state.
"""

import base64
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fl_contract.metrics import MEASURES
from fl_contract.metrics.classes import Evaluation
from fl_contract.metrics.histogram import ScoreHistogram
from fl_server.figures import Figures
from fl_server.summary import PooledRound, Round, SiteRound

_WIDTH = 5.4  # inches: two plots side by side on a screen, one across a phone with its text still legible
_BLACK, _GREY, _BLUE, _PALE = "#000000", "#6e6e6e", "#0072B2", "#56B4E9"
_SITE_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7")
_SITE_LINES = ("-", "--", "-.")
_MARKERS = "osD^vP*X"
_MAX_NAMED_SITES = len(_SITE_COLOURS) * len(_SITE_LINES)
_MAX_BARS = 40
_MAX_NAME = 20
_FEW = 10  # patients in a calibration group below which its point is drawn hollow


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a hospital or a variant looks."""

    colour: str
    line: str
    marker: str


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot and its words.

    Attributes:
        caption: Its name.
        note: How to read it.
        alt: What it shows, with numbers.
        uri: The SVG as a ``data:`` URI, for ``<img src>``.
    """

    caption: str
    note: str
    alt: str
    uri: str


VARIANT_STYLES = {
    "local": Style(colour=_GREY, line=":", marker="o"),
    "private": Style(colour=_BLUE, line="-", marker="D"),
    "federated": Style(colour="#D55E00", line="--", marker="s"),
    "pooled": Style(colour=_BLACK, line="-.", marker="^"),
}


def site_styles(sites: Sequence[str]) -> dict[str, Style]:
    """A look for each hospital; more hospitals than can be told apart all look the same."""
    if len(sites) > _MAX_NAMED_SITES:
        return {site: Style(colour=_PALE, line="-", marker="") for site in sites}
    looks = zip(itertools.product(_SITE_LINES, _SITE_COLOURS), itertools.cycle(_MARKERS), strict=False)
    return {
        site: Style(colour=colour, line=line, marker=marker)
        for site, ((line, colour), marker) in zip(sites, looks, strict=False)
    }


def plot_rounds(rounds: Sequence[Round], measure: str, styles: Mapping[str, Style], unit: str = "") -> Plot:
    """A measure on held-out patients over rounds: each hospital's, and in bold that of all patients together.

    Args:
        rounds: In their order.
        measure: ``loss``, or a key of `fl_contract.metrics.MEASURES`.
        styles: Of each hospital.
        unit: Of the measure; empty for a ratio.
    """
    figure, axes = _one_plot(height=_height_with_legend(len(styles)))
    numbers = [each.round for each in rounds]
    for site in styles:
        values = [_value(each.sites.get(site), measure) for each in rounds]
        _draw_site(axes, numbers, values, site, styles, width=1.4)
    together = [_value(each.pooled, measure) for each in rounds]
    axes.plot(numbers, together, color=_BLACK, linewidth=3, label="all patients together", zorder=5)
    name = "Loss" if measure == "loss" else MEASURES[measure]
    in_axis = "loss" if measure == "loss" else name
    axes.set_ylabel(f"{in_axis} on held-out patients{f' ({_plain(unit)})' if unit else ''}")
    _finish_round_axis(axes)
    known = [value for value in together if math.isfinite(value)]
    course = f"{known[0]:.3f} at first, {known[-1]:.3f} at last" if known else "not defined in any round"
    return Plot(
        caption=f"{name} over rounds",
        note=f"{name} on each hospital's held-out patients, and on all of them (bold).",
        alt=f"{name} by round, a line for each hospital. All patients together: {course}.",
        uri=_to_data_uri(figure),
    )


def plot_epsilon(rounds: Sequence[Round], target: float, styles: Mapping[str, Style]) -> Plot:
    """Privacy spent by each hospital over rounds, and the target; hospitals that spent alike show as nested lines."""
    figure, axes = _one_plot(height=_height_with_legend(len(styles)))
    numbers = [each.round for each in rounds]
    spent = {site: [_value(each.sites.get(site), "epsilon") for each in rounds] for site in styles}
    spent = {site: values for site, values in spent.items() if np.isfinite(values).any()}
    for (site, values), width in zip(spent.items(), np.linspace(11.0, 1.6, num=max(len(spent), 1)), strict=False):
        nested = {site: replace(styles[site], line="-", marker="o" if len(rounds) == 1 else "")}
        is_named = len(spent) <= _MAX_NAMED_SITES
        _draw_site(axes, numbers, values, site, nested if is_named else styles, width=float(width))
    axes.axhline(target, color=_BLACK, linestyle="--", linewidth=1.4, label=f"target {target:g}")
    axes.set_ylabel("privacy spent so far (epsilon)")
    axes.set_ylim(bottom=0)
    _finish_round_axis(axes)
    final = [f"{site} {np.nanmax(values):.3f}" for site, values in spent.items()]
    return Plot(
        caption="Privacy spent over rounds",
        note="Lines of hospitals that spent alike lie inside one another.",
        alt=f"Epsilon by round, a line for each hospital, up to: {_join(final)}. The target is {target:g}.",
        uri=_to_data_uri(figure),
    )


def plot_roc(evaluations: Mapping[str, Evaluation], labels: Mapping[str, str]) -> Plot:
    """ROC curves by variant on all held-out patients; several classes as the mean of one class against the rest."""
    figure, axes = _one_plot(height=4.9)
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
    for kind, evaluation in evaluations.items():
        style = VARIANT_STYLES[kind]
        false_rate, true_rate = _mean_roc(evaluation.scores)
        label = f"{labels[kind]} (AUROC {evaluation.auroc:.3f})"
        axes.plot(false_rate, true_rate, color=style.colour, linestyle=style.line, linewidth=2, label=label)
    note = ", mean over classes" if any(len(each.scores.counts) > 1 for each in evaluations.values()) else ""
    axes.set_xlabel(f"false positive rate (1 \N{MINUS SIGN} specificity){note}")
    axes.set_ylabel(f"true positive rate (sensitivity){note}")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    _tidy(axes)
    _add_legend(axes, columns=1)
    how = ", as the mean of each class against the rest" if note else ""
    areas = [f"{labels[kind]} {evaluation.auroc:.3f}" for kind, evaluation in evaluations.items()]
    return Plot(
        caption="ROC curves",
        note=f"Final models on all held-out patients together{how}.",
        alt=f"ROC curves, with the areas under them: {_join(areas)}.",
        uri=_to_data_uri(figure),
    )


def plot_calibration(evaluations: Mapping[str, Evaluation], labels: Mapping[str, str]) -> Plot:
    """Observed share against predicted probability, and below how many patients each point rests on."""
    figure = Figure(figsize=(_WIDTH, 4.9), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
    width = 0.08 / max(len(evaluations), 1)
    for position, (kind, evaluation) in enumerate(evaluations.items()):
        style = VARIANT_STYLES[kind]
        predicted, observed, counts = evaluation.scores.calibration()
        enough = counts >= _FEW
        joined = np.where(enough, observed, np.nan)  # no line across groups of few
        upper.plot(predicted, joined, color=style.colour, linestyle=style.line, linewidth=1.4)
        faces = [style.colour if is_solid else "white" for is_solid in enough]
        upper.scatter(predicted, observed, c=faces, edgecolors=style.colour, marker=style.marker, s=36, zorder=3)
        upper.plot([], [], color=style.colour, linestyle=style.line, marker=style.marker, label=labels[kind])
        group = np.minimum((predicted * 10).astype(int), 9)
        lower.bar(group / 10 + 0.01 + width * (position + 0.5), counts, width=width, color=style.colour)
    is_binary = all(len(each.scores.counts) == 1 for each in evaluations.values())
    lower.set_ylabel("patients" if is_binary else "patients\n× classes")
    lower.set_xlabel("predicted probability" if is_binary else "predicted probability, all classes taken together")
    upper.set_ylabel("observed share")
    upper.set(xlim=(-0.02, 1.02), ylim=(-0.04, 1.04))
    for axes in (upper, lower):
        _tidy(axes)
    figure.align_ylabels()
    _add_legend(upper, columns=1)
    kinds = _join([labels[kind] for kind in evaluations])
    return Plot(
        caption="Calibration",
        note=f"On the dotted line, predictions come true as often as they say. Hollow: fewer than {_FEW} patients.",
        alt=f"Observed share by predicted probability, a line for each of: {kinds}.",
        uri=_to_data_uri(figure),
    )


def plot_comparison(variants: Figures, measure: str, sites: Sequence[str], labels: Mapping[str, str]) -> Plot:
    """The measure by hospital and for all patients together, one mark a variant; ``variants`` as in the summary."""
    name = MEASURES[measure]
    shown = list(sites[:_MAX_BARS])
    figure, axes = _one_plot(height=1.7 + 0.36 * (len(shown) + 1))
    axes.axhline(0, color="#bbbbbb", linewidth=14, alpha=0.25)
    for kind, figures in variants.items():
        style, measured = VARIANT_STYLES[kind], figures[measure]
        values = [_number(measured["pooled"]), *(_number(measured["sites"].get(site)) for site in shown)]
        face = "white" if kind == "local" else style.colour
        size = 64 if kind == "local" else 40
        axes.scatter(values, range(len(values)), marker=style.marker, s=size, facecolors=face,
                     edgecolors=style.colour, linewidths=1.6, label=labels[kind], zorder=3)  # fmt: skip
    axes.set_yticks(range(len(shown) + 1), ["all together", *map(_plain, shown)])
    axes.set_ylim(len(shown) + 0.5, -0.5)
    axes.set_xlabel(f"{name} on held-out patients")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _tidy(axes)
    _add_legend(axes, columns=1)
    pooled = [f"{labels[kind]} {_number(figures[measure]['pooled']):.3f}" for kind, figures in variants.items()]
    omitted = f" The first {_MAX_BARS} of {len(sites)}." if len(shown) < len(sites) else ""
    return Plot(
        caption=f"{name} by hospital",
        note=f"One mark for each way to train, on the hospital's own held-out patients.{omitted}",
        alt=f"Marks of {name} by hospital and way to train, as in the table. All together: {_join(pooled)}.",
        uri=_to_data_uri(figure),
    )


def plot_sizes(
    declared: Mapping[str, int],
    evaluations: Mapping[str, Evaluation],
    classes: Sequence[str],
    styles: Mapping[str, Style],
) -> Plot:
    """Hospitals by size: training records as declared, and held-out patients by class; the largest of many."""
    total = {site: declared.get(site, 0) for site in styles}
    shown = [site for site in styles if site in sorted(total, key=lambda site: -total[site])[:_MAX_BARS]]
    figure = Figure(figsize=(_WIDTH, 1.7 + 0.34 * len(shown)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(shown))
    bars = left.barh(rows, [total[site] for site in shown], color=[styles[site].colour for site in shown])
    left.bar_label(bars, padding=3, fontsize=9)
    left.set_yticks(rows, list(map(_plain, shown)))
    left.set_ylim(len(shown) - 0.4, -0.6)
    left.set_xlabel("training records\n(declared)")
    counts_by_class = np.array([_count_classes(evaluations.get(site), len(classes)) for site in shown])
    start = np.zeros(len(shown))
    for counts, name, colour in zip(counts_by_class.T, classes, _class_colours(len(classes)), strict=True):
        bars = right.barh(rows, counts, left=start, color=colour, edgecolor="white", linewidth=0.6, label=_plain(name))
        start += counts
    right.bar_label(bars, labels=[f"{count:.0f}" for count in start], padding=3, fontsize=9)
    right.set_xlabel("held-out patients\nby class")
    for axes in (left, right):
        _tidy(axes)
        axes.margins(x=0.2)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.legend(loc="outside lower center", ncols=min(len(classes), 5), frameon=False, fontsize=9)
    omitted = f" The {_MAX_BARS} largest of {len(styles)}." if len(shown) < len(styles) else ""
    return Plot(
        caption="Size of the hospitals",
        note=f"Records to train on, and patients held out to measure.{omitted}",
        alt=f"Bars of declared training records: {_join([f'{site} {total[site]}' for site in shown])}; "
        f"and of held-out patients by class: {start.sum():.0f} in all.",
        uri=_to_data_uri(figure),
    )


def _one_plot(height: float = 3.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _height_with_legend(num_sites: int) -> float:
    num_entries = 1 + (num_sites if num_sites <= _MAX_NAMED_SITES else 1)
    return 3.1 + 0.17 * math.ceil(num_entries / 2)


def _draw_site(
    axes: Axes, rounds: list[int], values: list[float], site: str, styles: Mapping[str, Style], *, width: float
) -> None:
    if not np.isfinite(values).any():
        return
    style = styles[site]
    is_crowd = len(styles) > _MAX_NAMED_SITES
    crowd = None if axes.lines else f"each of {len(styles)} hospitals"
    marker = style.marker if len(rounds) <= 30 else ""
    axes.plot(rounds, values, color=style.colour, linestyle=style.line, marker=marker, markersize=4,
              linewidth=0.7 if is_crowd else width, label=crowd if is_crowd else _plain(site))  # fmt: skip


def _finish_round_axis(axes: Axes) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _tidy(axes)
    _add_legend(axes, columns=2)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)


def _add_legend(axes: Axes, *, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure = axes.figure
    if handles and isinstance(figure, Figure):
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _mean_roc(scores: ScoreHistogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    curves = [scores.roc(column) for column in range(len(scores.counts))]
    defined = [(x, y) for x, y in curves if np.isfinite(x).all() and np.isfinite(y).all()]
    if len(defined) == 1:
        return defined[0]
    grid = np.linspace(0.0, 1.0, 501)
    if not defined:
        return grid, np.full_like(grid, np.nan)
    mean = np.mean([np.interp(grid, x, y) for x, y in defined], axis=0)
    return np.concatenate([[0.0], grid]), np.concatenate([[0.0], mean])


def _count_classes(evaluation: Evaluation | None, num_classes: int) -> list[int]:
    if evaluation is None:
        return [0] * num_classes
    scores = evaluation.scores
    if len(scores.counts) == 1:
        return [scores.num_examples - scores.num_positive, scores.num_positive]
    return [int(side.sum()) for side in scores.counts[:, 1]]


def _class_colours(num_classes: int) -> list[tuple[float, float, float, float]]:
    return [colormaps["cividis"](position) for position in np.linspace(0.85, 0.05, num_classes)]


def _value(record: SiteRound | PooledRound | None, field: str) -> float:
    if record is None:
        return math.nan
    return _number(record.figures.get(field) if field in MEASURES else getattr(record, field, None))


def _number(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan


def _join(items: Sequence[str]) -> str:
    return "; ".join(items) if items else "none"


def _plain(name: str) -> str:
    """A name as text of a plot: shortened in its middle, no formula in it, no leading underscore that would hide it."""
    short = name if len(name) <= _MAX_NAME else f"{name[:10]}\N{HORIZONTAL ELLIPSIS}{name[-9:]}"
    return (f" {short}" if short.startswith("_") else short).replace("$", r"\$")


def _to_data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Creator": None, "Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
