"""Every plot is one self-contained SVG with words, whatever the names, the number of hospitals and the gaps."""

import base64
import re
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from fl_contract.metrics.classes import Evaluation
from fl_server import plots
from fl_server.figures import Figures
from fl_server.plots import Plot, site_styles
from fl_server.summary import PooledRound, Round, SiteRound

LABELS = {"local": "Alone", "private": "With privacy", "federated": "Without privacy", "pooled": "One place"}


def read_svg(plot: Plot) -> str:
    """The SVG of a plot; fails if it is not well-formed or holds a reference to another file."""
    kind, _, data = plot.uri.partition(",")
    svg = base64.b64decode(data, validate=True).decode()
    ElementTree.fromstring(svg.encode())  # noqa: S314  # drawn by us
    assert kind == "data:image/svg+xml;base64"
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', svg))
    return svg


def make_rounds(sites: list[str], *, num_rounds: int = 3, auroc: float | None = 0.8) -> list[Round]:
    """Rounds in which the last hospital answers only the first one."""
    rounds = []
    for number in range(1, num_rounds + 1):
        site = SiteRound(
            num_examples=10, test_examples=5, loss=1 / number, figures={"auroc": auroc}, bytes_down=1, bytes_up=1,
            seconds=0.1, epsilon=0.5 * number, delta=0.001, steps=4,
        )  # fmt: skip
        answered = sites if number == 1 else sites[:-1]
        pooled = PooledRound(loss=1 / number, figures={"auroc": auroc})
        rounds.append(Round(round=number, seconds=1, sites=dict.fromkeys(answered, site), pooled=pooled, missing={}))
    return rounds


def make_evaluation(num_classes: int = 2, num_patients: int = 200) -> Evaluation:
    """Scores that tell the classes apart, but not perfectly."""
    generator = np.random.default_rng(3)
    labels = generator.integers(0, num_classes, size=num_patients)
    columns = 1 if num_classes == 2 else num_classes
    has_class = labels[:, None] == (1 if columns == 1 else np.arange(columns))
    logits = np.where(has_class, 1.0, -1.0) + generator.normal(size=has_class.shape)
    return Evaluation.of(logits, labels, loss_sum=1.0)


def make_figures(sites: list[str]) -> Figures:
    auroc = {"pooled": 0.9, "sites": dict.fromkeys(sites[:-1], 0.8)}
    return {"local": {"auroc": auroc}, "private": {"auroc": auroc}}


@pytest.mark.parametrize("names", [["a"], ["$x^2$ & <b>", "_hidden", "A very long name of a hospital 12"]])
def test_every_plot_takes_any_name(names: list[str]) -> None:
    styles, rounds = site_styles(names), make_rounds(names)
    own = dict.fromkeys(names, make_evaluation())

    drawn = [
        plots.plot_rounds(rounds, "loss", styles),
        plots.plot_rounds(rounds, "auroc", styles),
        plots.plot_epsilon(rounds, 8.0, styles),
        plots.plot_comparison(make_figures(names), "auroc", names, LABELS),
        plots.plot_sizes(dict.fromkeys(names, 10), own, ["no", "yes"], styles),
    ]

    assert all(read_svg(plot) and plot.alt and plot.caption and plot.note for plot in drawn)


def test_a_hospital_is_drawn_even_if_its_name_starts_with_an_underscore() -> None:
    styles = site_styles(["_hidden"])

    svg = read_svg(plots.plot_rounds(make_rounds(["_hidden", "b"], num_rounds=1), "loss", styles))

    assert "hidden" in svg  # matplotlib names the text of a glyph path in a comment


def test_words_carry_the_numbers_of_the_plot() -> None:
    rounds, styles = make_rounds(["a", "b"]), site_styles(["a", "b"])

    loss = plots.plot_rounds(rounds, "loss", styles)
    epsilon = plots.plot_epsilon(rounds, 8.0, styles)

    assert "1.000 at first, 0.333 at last" in loss.alt
    assert epsilon.alt.endswith("up to: a 1.500; b 0.500. The target is 8.")


def test_a_measure_that_no_round_defines_is_said_to_be_so() -> None:
    plot = plots.plot_rounds(make_rounds(["a"], auroc=None), "auroc", site_styles(["a"]))

    assert read_svg(plot)
    assert "not defined in any round" in plot.alt


@pytest.mark.parametrize("num_classes", [2, 10])
def test_roc_and_calibration_take_two_classes_or_ten(num_classes: int) -> None:
    evaluations = dict.fromkeys(("private", "federated", "pooled"), make_evaluation(num_classes))

    roc = plots.plot_roc(evaluations, LABELS)
    calibration = plots.plot_calibration(evaluations, LABELS)

    assert read_svg(roc)
    assert read_svg(calibration)
    assert f"With privacy {evaluations['private'].auroc:.3f}" in roc.alt
    assert ("mean of each class against the rest" in roc.note) is (num_classes == 10)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_patients_of_one_class_have_no_roc_curve_but_a_plot(num_classes: int) -> None:
    columns = 1 if num_classes == 2 else num_classes
    evaluation = Evaluation.of(np.zeros((4, columns)), np.ones(4, dtype=np.int64), loss_sum=1.0)

    plot = plots.plot_roc({"private": evaluation}, LABELS)

    assert read_svg(plot)


def test_the_mean_roc_curve_encloses_the_mean_area() -> None:
    scores = make_evaluation(num_classes=3, num_patients=3000).scores

    false_rate, true_rate = plots._mean_roc(scores)

    assert np.trapezoid(true_rate, false_rate) == pytest.approx(scores.auroc(), abs=0.002)


def test_classes_are_counted_for_one_score_and_for_many() -> None:
    binary = Evaluation.of(np.zeros((5, 1)), np.array([0, 0, 0, 1, 1]), loss_sum=0.0)
    several = Evaluation.of(np.zeros((5, 3)), np.array([0, 2, 2, 1, 2]), loss_sum=0.0)

    assert plots._count_classes(binary, 2) == [3, 2]
    assert plots._count_classes(several, 3) == [1, 1, 3]
    assert plots._count_classes(None, 3) == [0, 0, 0]


def test_up_to_fifteen_hospitals_all_look_different() -> None:
    styles = site_styles([f"site-{number}" for number in range(15)])

    assert len({(style.colour, style.line) for style in styles.values()}) == 15


def test_more_hospitals_than_can_be_told_apart_are_drawn_as_a_crowd() -> None:
    names = [f"site-{number}" for number in range(41)]
    styles, rounds = site_styles(names), make_rounds(names, num_rounds=2)

    loss = read_svg(plots.plot_rounds(rounds, "loss", styles))
    epsilon = read_svg(plots.plot_epsilon(rounds, 8.0, styles))
    comparison = plots.plot_comparison(make_figures(names), "auroc", names, LABELS)
    sizes = plots.plot_sizes(dict.fromkeys(names, 1) | {"site-40": 2}, {}, ["no", "yes"], styles)

    assert loss.count("each of 41 hospitals") == 1
    assert epsilon.count("each of 41 hospitals") == 1
    assert comparison.note.endswith("The first 40 of 41.")
    assert sizes.note.endswith("The 40 largest of 41.")
    assert "site-40 2" in sizes.alt


def test_drawing_leaves_matplotlibs_settings_alone() -> None:
    before = dict(mpl.rcParams)

    plots.plot_roc({"private": make_evaluation()}, LABELS)

    assert dict(mpl.rcParams) == before
