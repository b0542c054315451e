"""The report answers from the files alone, escapes what they say, fetches nothing, and shows every plot with words."""

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measurements import of_bins

from fl_contract.errors import RunError
from fl_contract.metrics.classes import Evaluation
from fl_contract.metrics.noised import NoisedCounts
from fl_server import plots
from fl_server.report import write_report
from fl_server.report_template import write_duration, write_epsilon, write_names
from fl_server.summary import read_evaluations, write_evaluations
from privacy.accounting import Spend
from privacy.group import compute_patient_epsilon

RECORDS = {"hospital-1": 142, "hospital-2": 61, "hospital-3": 28, "hospital-4": 167}
STRENGTH = {"local": 2.2, "private": 3.0, "federated": 3.4, "pooled": 3.6}
TARGET = 8.0


class RunFolderWriter:
    """Writes a folder of plausible runs, as the coordinator does.

    Attributes:
        sites: Training records by hospital.
        num_classes: Of the label.
        mechanism: Of the private variant.
        engine: That ran it.
    """

    def __init__(self, out: Path, sites: dict[str, int] | None = None, num_classes: int = 2) -> None:
        self.out = out
        self.sites = RECORDS if sites is None else sites
        self.num_classes = num_classes
        self.mechanism = "dp-sgd"
        self.engine = "local"
        self.generator = np.random.default_rng(7)

    def write_all(self, num_rounds: int = 20) -> Path:
        """Every variant, one local model for each hospital."""
        for variant in ("private", "federated", "pooled", *(f"local-{site}" for site in self.sites)):
            self.write(variant, num_rounds=num_rounds)
        return self.out

    def write(self, variant: str, *, num_rounds: int = 20, **header: Any) -> Path:
        """One variant; ``header`` replaces keys of run.json."""
        folder = self.out / variant
        folder.mkdir(parents=True)
        kind = "local" if variant.startswith("local-") else variant
        is_private = variant == "private" and self.mechanism != "none"
        trainers = {"local": [variant.removeprefix("local-")], "pooled": ["pooled"]}.get(kind, list(self.sites))
        run = self._header(variant, trainers, is_private) | header
        (folder / "run.json").write_text(json.dumps(run))
        rounds = [self._round(number, num_rounds, trainers, kind, is_private) for number in range(1, num_rounds + 1)]
        (folder / "rounds.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rounds))
        write_evaluations(
            folder / "evaluation.json",
            {site: self._measure(max(6, records // 2), STRENGTH[kind]) for site, records in self.sites.items()},
        )
        return folder

    def _header(self, variant: str, trainers: list[str], is_private: bool) -> dict[str, Any]:
        noise = 1.37 if is_private else 0.0
        classes = ["benign", "malignant"] if self.num_classes == 2 else [str(k) for k in range(self.num_classes)]
        mechanism = "dp-sgd" if is_private else "none"
        return {
            "study": "breast-cancer",
            "title": "Malignant or benign: breast masses",
            "variant": variant,
            "run": "3f9a6c0d5b7e4a11",
            "engine": self.engine,
            "status": "completed",
            "reason": "",
            "started": "2026-03-02T09:15:00+00:00",
            "finished": "2026-03-02T09:15:41+00:00",
            "seconds": 41.3,
            "seed": 2026,
            "num_rounds": 20,
            "num_parameters": 31,
            "versions": {"consilium": "0.1.0", "flwr": "1.41.0", "torch": "2.15.0", "opacus": "1.6.0"},
            "sites": {
                site: {"num_examples": self.sites.get(site, sum(self.sites.values())), "noise_multiplier": noise}
                for site in trainers
            },
            "refused": {},
            "settings": {
                "name": "breast-cancer",
                "schema": {"kind": "table", "label": "diagnosis", "classes": classes},
                "privacy": {
                    "mechanism": mechanism,
                    "unit": "record",
                    "epsilon": TARGET,
                    "delta": 0.001,
                    "clip-norm": 0.5,
                    "sampling-rate": 0.25,
                    "steps-per-round": 4,
                },
                "simulation": {"dataset": "breast-cancer"},
            },
        }

    def _round(self, number: int, last: int, trainers: list[str], kind: str, is_private: bool) -> dict[str, Any]:
        strength = STRENGTH[kind] * (1 - 0.7 * np.exp(-number / 4))
        sites: dict[str, dict[str, Any]] = {}
        for site, records in self.sites.items():
            measured = self._measure(max(6, records // 2), strength)
            sites[site] = {
                "num_examples": records if site in trainers else None,
                "test_examples": measured.num_examples,
                "loss": measured.loss,
                "figures": {
                    "auroc": measured.auroc if np.isfinite(measured.auroc) else None,
                    "accuracy": measured.accuracy,
                },
                "bytes_down": 5124,
                "bytes_up": 5124 if site in trainers else 0,
                "seconds": 0.07,
                "epsilon": TARGET * 0.998 * float(np.sqrt(number / last)) if is_private else None,
                "delta": 0.001 if is_private else None,
                "steps": 4 if is_private else None,
            }
        losses = [float(entry["loss"] or 0) for entry in sites.values()]
        figures = {"auroc": 0.5 + 0.49 * (1 - np.exp(-number / 3)), "accuracy": 0.9}
        pooled = {"loss": float(np.mean(losses)), "figures": figures}
        return {"round": number, "seconds": 0.4, "sites": sites, "pooled": pooled, "missing": {}}

    def _measure(self, num_patients: int, strength: float) -> Evaluation:
        labels = self.generator.integers(0, self.num_classes, size=num_patients)
        columns = 1 if self.num_classes == 2 else self.num_classes
        has_class = labels[:, None] == (1 if columns == 1 else np.arange(columns))
        logits = np.where(has_class, strength / 2, -strength / 2) + self.generator.normal(size=has_class.shape) * 1.2
        loss = np.log1p(np.exp(-np.where(has_class, logits, -logits))).sum()
        return Evaluation.of(logits, labels, loss_sum=float(loss))


@pytest.fixture
def writer(tmp_path: Path) -> RunFolderWriter:
    return RunFolderWriter(tmp_path / "out")


@pytest.fixture
def blank_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of words: nothing is drawn, which takes most of a page's time."""
    blank = plots.Plot(caption="Blank", note="Nothing.", alt="Nothing.", uri="data:image/svg+xml;base64,AAAA")
    for name in dir(plots):
        if name.startswith("plot_"):
            monkeypatch.setattr(plots, name, lambda *_: blank)


def read_page(out: Path) -> str:
    """The page as text, with each plot's data cut out and white space joined."""
    page = write_report(out).read_text(encoding="utf-8")
    return " ".join(re.sub(r"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", "data:PLOT", page).split())


def edit_rounds(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Apply a change to each line of rounds.jsonl."""
    path = folder / "rounds.jsonl"
    rounds = [json.loads(line) for line in path.read_text().splitlines()]
    for each in rounds:
        change(each)
    path.write_text("".join(json.dumps(each) + "\n" for each in rounds))


def constant_scores(num_cases: int, num_controls: int, *, wrong_pairs: int) -> Evaluation:
    """Cases in one bin, controls below it, except one control above ``wrong_pairs`` cases: AUROC is easy to see."""
    cases = [30] * wrong_pairs + [50] * (num_cases - wrong_pairs)
    return of_bins(cases, [10] * (num_controls - 1) + [40], loss_sum=9.0)


def write_verdict(writer: RunFolderWriter, alone: int, together: int) -> str:
    """The page of two hospitals whose models rank so many of 100 cases wrongly against one of 10 controls."""
    writer.sites = {"a": 50, "b": 50}
    for variant, wrong in (("private", together), ("local-a", alone), ("local-b", alone)):
        folder = writer.write(variant, num_rounds=1)
        scores = constant_scores(100, 10, wrong_pairs=wrong)
        write_evaluations(folder / "evaluation.json", {"a": scores, "b": scores})
    return read_page(writer.out)


def test_the_page_fetches_nothing(writer: RunFolderWriter) -> None:
    page = read_page(writer.write_all(num_rounds=3))

    assert "http" not in page.lower()
    assert "url(" not in page
    assert "<script" not in page
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {"data:PLOT"}


def test_every_plot_is_there_with_its_words(writer: RunFolderWriter) -> None:
    page = read_page(writer.write_all(num_rounds=3))

    captions = re.findall(r"<figcaption>([^<]*) <small>", page)
    alternatives = re.findall(r'<img src="data:PLOT" alt="([^"]{40,})">', page)
    assert captions == [
        "AUROC by hospital", "Size of the hospitals", "Loss over rounds", "AUROC over rounds", "ROC curves",
        "Calibration", "Privacy spent over rounds",
    ]  # fmt: skip
    assert len(alternatives) == len(captions)


@pytest.mark.usefixtures("blank_plots")
def test_the_answer_is_computed_from_the_files(writer: RunFolderWriter) -> None:
    # Alone, 1 of 10 controls is above 50 of 100 cases: 50 of 1,000 pairs are wrong, AUROC 0.95. Together none is: 1.
    page = write_verdict(writer, alone=50, together=0)

    assert "Yes: joining made a better model." in page
    assert "reaches an AUROC of 1.000." in page
    assert "reaches 0.950 on the same patients on average: joining raised it by 0.050." in page
    # Right are cases in bin 50 and controls in bin 10, of 110: 100 + 9, alone 50 + 9.
    assert "The class is predicted of 99.1% of them, by a model trained alone of 53.6%." in page
    assert "On their own patients, a (+0.050) and b (+0.050) gained." in page
    assert "No hospital spent more than epsilon 7.984 of the 8 that was agreed." in page


@pytest.mark.usefixtures("blank_plots")
@pytest.mark.parametrize(
    ("alone", "together", "headline"),
    [
        (50, 50, "Overall it made no clear difference."),
        (0, 90, "Overall no: joining made a worse model"),
        (60, 50, "Perhaps: the difference is small against chance."),
        (50, 60, "Perhaps not: the difference is small against chance."),
    ],
)
def test_the_headline_says_no_more_than_the_figures(
    writer: RunFolderWriter, alone: int, together: int, headline: str
) -> None:
    # A wrong pair weighs 1 / 1,000: 10 of them are 0.01, within the interval of about 0.06 to either side.
    page = write_verdict(writer, alone=alone, together=together)

    assert f'<p class="headline">{headline}' in page


@pytest.mark.usefixtures("blank_plots")
def test_equal_models_are_not_said_to_differ_by_zero(writer: RunFolderWriter) -> None:
    page = write_verdict(writer, alone=50, together=50)

    assert "joining changed it by less than 0.001." in page
    assert '<span class="same">0.000<small>● no clear change</small></span>' in page


@pytest.mark.usefixtures("blank_plots")
def test_a_small_change_is_given_but_not_called_a_gain(writer: RunFolderWriter) -> None:
    page = write_verdict(writer, alone=50, together=48)

    assert "joining changed it by only 0.002." in page


@pytest.mark.usefixtures("blank_plots")
def test_a_hospital_that_lost_is_named_in_the_headline(writer: RunFolderWriter) -> None:
    write_verdict(writer, alone=50, together=0)
    scores = {"a": constant_scores(100, 10, wrong_pairs=0), "b": constant_scores(10, 10, wrong_pairs=9)}
    write_evaluations(writer.out / "private" / "evaluation.json", scores)

    page = read_page(writer.out)

    assert "Overall yes, but not for b." in page
    assert "a (+0.050) gained; b (\N{MINUS SIGN}0.040) lost" in page  # 9 of 100 pairs wrong, 0.05 before


@pytest.mark.usefixtures("blank_plots")
def test_the_cost_of_privacy_is_what_the_same_training_without_noise_gains(writer: RunFolderWriter) -> None:
    write_verdict(writer, alone=50, together=20)
    scores = {"a": constant_scores(100, 10, wrong_pairs=10), "b": constant_scores(100, 10, wrong_pairs=10)}
    write_evaluations(writer.write("federated", num_rounds=1) / "evaluation.json", scores)

    costly = read_page(writer.out)
    write_evaluations(writer.out / "private" / "evaluation.json", scores)
    free = read_page(writer.out)

    assert "Privacy cost 0.010: the same training without noise reaches 0.990." in costly
    assert "Privacy cost no clear loss: the same training without noise reaches 0.990." in free


@pytest.mark.usefixtures("blank_plots")
def test_a_plain_run_cannot_answer_and_says_why(writer: RunFolderWriter) -> None:
    writer.engine = "flower"
    writer.write("private", num_rounds=2)

    page = read_page(writer.out)

    assert "The files cannot say: the models are not there to compare joining with staying alone." in page
    assert "there are no models trained alone to compare" in page
    assert "If the hospitals were virtual ones of a simulation" in page
    assert "Change by joining" not in page


@pytest.mark.usefixtures("blank_plots")
def test_a_failed_run_says_so_and_still_shows_what_was_spent(writer: RunFolderWriter) -> None:
    writer.write("private", num_rounds=2, status="failed", reason="Only 2 hospitals answered.", finished=None)

    page = read_page(writer.out)

    assert "This run is not a finished one; its status is failed: Only 2 hospitals answered." in page
    assert "The files cannot say." in page
    assert "not finished" in page
    assert "Every hospital, every way to train" not in page
    assert "<td>7.984</td>" in page


@pytest.mark.usefixtures("blank_plots")
def test_a_run_that_failed_before_its_first_round_has_a_page(writer: RunFolderWriter) -> None:
    writer.write("private", num_rounds=0, status="failed", sites={})

    page = read_page(writer.out)

    assert "No hospital has reported a spend." in page
    assert "<figure>" not in page


@pytest.mark.usefixtures("blank_plots")
def test_a_folder_without_a_joint_run_has_a_page(writer: RunFolderWriter) -> None:
    writer.write("local-hospital-1", num_rounds=2)

    page = read_page(writer.out)

    assert "No jointly trained model was measured" in page
    assert "No differential privacy.</b> This folder holds no run with privacy." in page


def test_text_from_the_files_is_escaped(writer: RunFolderWriter) -> None:
    name = '<script>alert("1")<!-- $'
    writer.sites = {name: 40, "b": 60}
    absence = {"code": "<i>", "reason": "<b>&"}
    writer.write("private", num_rounds=2, title="<u>Title", refused={name: absence}, reason="<em>")

    page = read_page(writer.out)

    assert "<script" not in page
    assert "&lt;script&gt;alert(&#34;1&#34;)&lt;!-- $" in page
    assert '<td class="text"><code>&lt;i&gt;</code></td>' in page
    assert not {"<i>", "<u>", "<em>", "<b>&"} & set(re.findall(r"<[a-z]+>&?", page))


@pytest.mark.usefixtures("blank_plots")
def test_hospitals_that_refused_or_went_missing_are_listed_with_rounds_and_reasons(writer: RunFolderWriter) -> None:
    refused = {"hospital-9": {"code": "one-class", "reason": "The hospital's patients all carry the same label."}}
    folder = writer.write("private", num_rounds=9, refused=refused)

    def drop(each: dict[str, Any]) -> None:
        if each["round"] in (2, 3, 4, 7):
            del each["sites"]["hospital-3"]
            each["missing"]["hospital-3"] = {"code": "deadline", "reason": "No answer within 600 s."}

    edit_rounds(folder, drop)
    page = unescape(read_page(writer.out))

    assert (
        '<th scope="row">hospital-9</th><td class="text">private</td><td class="text">before round 1</td> '
        '<td class="text"><code>one-class</code></td>'
        '<td class="text why">The hospital\'s patients all carry the same label.</td>'
    ) in page
    assert '<td class="text">rounds 2–4, 7</td> <td class="text"><code>deadline</code></td>' in page
    # 5 of 9 rounds trained, 4 missed, 5 x 5,124 bytes each way.
    assert "<td>28</td><td>5</td><td>4</td> <td>25.6 kB</td><td>25.6 kB</td>" in page


@pytest.mark.usefixtures("blank_plots")
def test_a_full_house_is_said_to_be_one(writer: RunFolderWriter) -> None:
    writer.write("private", num_rounds=1)

    assert "None: no hospital refused, and none missed a round." in read_page(writer.out)


@pytest.mark.usefixtures("blank_plots")
def test_the_privacy_statement_names_promise_spend_and_releases(writer: RunFolderWriter) -> None:
    page = read_page(writer.write_all(num_rounds=2))

    assert "Epsilon at most 8 at delta 0.001 for all 20 planned rounds together." in page
    assert "Poisson sampling" in page
    assert "(add or remove one)" in page
    # Epsilon, delta, noise multiplier, training records, rounds, and 2 rounds of 4 steps.
    assert ("hospital-3</th><td>7.984</td><td>0.001</td> <td>1.370</td><td>28</td><td>2</td> <td>8</td>") in page
    assert "epsilon covers these held-out patients." in page
    assert "runs without differential privacy: federated, local-hospital-1" in page


@pytest.mark.usefixtures("blank_plots")
def test_a_study_by_record_says_what_a_patient_with_several_spends(writer: RunFolderWriter) -> None:
    page = read_page(writer.write_all(num_rounds=2))

    # Eight steps at noise 1.37 and rate 0.25, as at every hospital here.
    spend = Spend(noise_multiplier=1.37, sampling_rate=0.25, steps=8)
    several = {count: compute_patient_epsilon([spend], 0.001, records_per_patient=count) for count in (2, 8)}
    assert several[2] < several[8]
    assert f"{write_epsilon(several[2])} with 2 records" in page
    assert f"{write_epsilon(several[8])} with 8 records" in page
    assert "It protects one record, not a patient" in page


@pytest.mark.usefixtures("blank_plots")
def test_a_study_by_patient_does_not_say_that_patients_are_protected_less(writer: RunFolderWriter) -> None:
    folder = writer.write("private", num_rounds=2)
    header = json.loads((folder / "run.json").read_text())
    header["settings"]["privacy"]["unit"] = "patient"
    (folder / "run.json").write_text(json.dumps(header))

    page = read_page(writer.out)

    assert "One patient with all records." in page
    assert "protected less" not in page


@pytest.mark.usefixtures("blank_plots")
def test_measurements_with_noise_are_listed_with_their_cost_and_not_as_exact(writer: RunFolderWriter) -> None:
    folder = writer.write("private", num_rounds=2)

    def add_noise(each: dict[str, Any]) -> None:
        each["sites"]["hospital-1"] |= {"noise_scale": 2.25, "measured_epsilon": 1.75}

    edit_rounds(folder, add_noise)
    page = read_page(writer.out)

    assert '<th scope="row">hospital-1</th><td>1.750</td><td>2.250</td>' in page
    assert "About held-out patients of hospital-2, hospital-3" in page


@pytest.mark.usefixtures("blank_plots")
def test_without_a_mechanism_the_page_says_no_differential_privacy_and_no_epsilon(writer: RunFolderWriter) -> None:
    writer.mechanism = "none"
    writer.write("private", num_rounds=2)

    page = read_page(writer.out)

    assert "<b>No differential privacy.</b> The study's settings" in unescape(page)
    assert "There was no differential privacy." in page
    assert "epsilon" not in page.partition("<details>")[0].lower()
    assert "with privacy" not in page


@pytest.mark.usefixtures("blank_plots")
def test_a_spend_above_the_promise_and_a_delta_too_large_are_alerts(writer: RunFolderWriter) -> None:
    folder = writer.write("private", num_rounds=1)

    def overspend(each: dict[str, Any]) -> None:
        each["sites"]["hospital-1"]["epsilon"] = 8.0004
        each["sites"]["hospital-3"]["delta"] = 0.05

    edit_rounds(folder, overspend)
    page = read_page(writer.out)

    assert "hospital-1 spent epsilon 8.001, more than the 8 that was promised." in page
    assert "hospital-3 has delta 0.05; expected below 1 / 28" in page


@pytest.mark.usefixtures("blank_plots")
@pytest.mark.parametrize(("first_round", "is_said"), [(11, True), (None, False)])
def test_a_final_model_that_is_a_mean_is_said_to_be_one(
    writer: RunFolderWriter, first_round: int | None, is_said: bool
) -> None:
    writer.write("private", num_rounds=1, averaged_from_round=first_round)

    assert ("The mean of the models from round 11 on" in read_page(writer.out)) is is_said


def test_ten_classes_have_every_plot_and_say_that_they_are_averaged(writer: RunFolderWriter) -> None:
    writer.num_classes = 10

    page = read_page(writer.write_all(num_rounds=2))

    assert page.count("<figure>") == 7
    assert "here the mean over the classes, each against the rest" in page
    assert re.search(r"\(95 % interval 0\.\d{3} to 0\.\d{3}\)", page)
    assert "these intervals are rather too wide" in page
    assert "Sensitivity" not in page


@pytest.mark.usefixtures("blank_plots")
def test_patients_of_one_class_leave_a_dash_and_a_note(writer: RunFolderWriter) -> None:
    one_class = Evaluation.of(np.ones((3, 1)), np.ones(3, dtype=np.int64), loss_sum=1.0)
    folder = writer.write("federated", num_rounds=1)
    others = read_evaluations(folder / "evaluation.json")
    write_evaluations(folder / "evaluation.json", others | {"hospital-3": one_class})

    page = read_page(writer.out)

    assert "No AUROC for hospital-3: the held-out patients there all carry the same label." in page
    assert "<td>–<small>100.0%</small></td>" in page


@pytest.mark.usefixtures("blank_plots")
def test_models_measured_on_different_hospitals_are_not_compared_silently(writer: RunFolderWriter) -> None:
    writer.write("private", num_rounds=1)
    writer.sites = {"hospital-1": 142}
    writer.write("federated", num_rounds=1)

    assert "Not every model was measured on the same hospitals' patients" in unescape(read_page(writer.out))


def test_a_schema_that_does_not_fit_the_scores_gives_numbered_classes(writer: RunFolderWriter) -> None:
    settings = writer.write("private", num_rounds=1) / "run.json"
    run = json.loads(settings.read_text())
    del run["settings"]["schema"]
    settings.write_text(json.dumps(run))

    assert "Size of the hospitals" in read_page(writer.out)


@pytest.mark.usefixtures("blank_plots")
def test_every_figure_stands_with_its_interval_beside_those_of_each_hospital(writer: RunFolderWriter) -> None:
    write_verdict(writer, alone=50, together=0)

    page = read_page(writer.out)
    table = page[page.index("<h2>All figures</h2>") :]
    table = table[: table.index("</table>")]

    rows = [re.findall(r"<th[^>]*>(.*?)</th>", row)[0] for row in re.findall(r"<tr>.*?</tr>", table)[1:]]
    assert rows == [
        "AUROC", "AUPRC", "Accuracy", "Sensitivity", "Specificity", "Brier score<small>smaller is better</small>",
        "Calibration error<small>smaller is better</small>",
    ]  # fmt: skip
    assert re.findall(r'<th scope="col"[^>]*>(.*?)</th>', table) == ["Figure", "All together", "a", "b"]
    # Perfect ranking shows no error; of 20 controls 18 are below the threshold, of each hospital's 10 there are 9.
    assert re.search(r"AUROC</th> <td>1\.000<small>–</small></td>", table)
    assert "<td>0.900<small>0.699–0.972</small></td> <td>0.900<small>0.596–0.982</small></td>" in table
    assert "predicted with more than 0.5." in page


@pytest.mark.usefixtures("blank_plots")
def test_decisions_that_noise_moved_to_another_threshold_are_said_to_be_so(writer: RunFolderWriter) -> None:
    folder = writer.write("private", num_rounds=1)
    cells = np.array([30, 20, 6, 3, 1, 0, 0, 0, 0, 0, 1, 3, 6, 10, 15, 5])
    noised = NoisedCounts(cells=cells, noise_scale=2.0, threshold=0.2)
    write_evaluations(folder / "evaluation.json", {"hospital-1": Evaluation.from_noised(noised)})

    page = read_page(writer.out)

    assert "predicted with more than 0.2. With noise they are read off at 0.119, the nearest bound of a bin." in page
    assert "intervals hold the noise too" in page


def test_long_lists_of_names_are_counted_after_the_eighth() -> None:
    assert write_names([str(number) for number in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s"), (3600.0, "1 h 0 min")]
)
def test_durations_carry_over(seconds: float, text: str) -> None:
    assert write_duration(seconds) == text


def test_an_unbounded_epsilon_is_called_so() -> None:
    assert write_epsilon(float("inf")) == "unbounded"


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run found"):
        write_report(tmp_path)


@pytest.mark.usefixtures("blank_plots")
def test_late_replies_and_hospitals_set_aside_are_listed(writer: RunFolderWriter) -> None:
    folder = writer.write("federated", num_rounds=6)
    reason = "It gave no usable reply 3 times in a row or more (deadline); it is asked again after 1, 2, 4, ... rounds."

    def change(line: dict[str, Any]) -> None:
        if line["round"] in (3, 5):
            line["sites"]["hospital-2"]["staleness"] = 1
        if line["round"] in (2, 3):
            line["missing"] = {"hospital-3": {"code": "set-aside", "reason": reason}}

    edit_rounds(folder, change)
    header = json.loads((folder / "run.json").read_text())
    header["sites"]["hospital-2"] |= {"num_cores": 8, "has_gpu": False}
    (folder / "run.json").write_text(json.dumps(header))

    page = read_page(writer.out)

    assert "<code>late</code>" in page
    assert "Its reply to an earlier round was folded in, 1 round(s) late." in page
    assert "<code>set-aside</code>" in page
    assert reason in page
    assert "how many cores train and whether there is a GPU at hospital-2." in page


BEST = {"round": 12, "loss": 0.1234}
ORIGIN = {"kind": "continue-from", "file": "runs/first/private/model.safetensors", "sha256": "ab" * 32}


@pytest.mark.usefixtures("blank_plots")
def test_the_best_round_is_said_to_be_chosen_on_held_out_patients(writer: RunFolderWriter) -> None:
    writer.write("private", best_round=BEST)

    page = unescape(write_report(writer.out).read_text())

    assert "The lowest loss on all held-out patients together was 0.1234, after round 12" in page
    assert "chosen by measurements on the held-out patients themselves, so its figures are optimistic" in page


@pytest.mark.usefixtures("blank_plots")
@pytest.mark.parametrize(
    ("origin", "sentence"),
    [
        ({"run": "3f9a", "study": "breast-cancer"}, "goes on from the model of run 3f9a (SHA-256 abababababab…)"),
        (
            {"kind": "warm-start", "run": None, "study": None},
            "started from the model of runs/first/private/model.safetensors (SHA-256 abababababab…)",
        ),
    ],
    ids=["a run", "a file"],
)
def test_the_model_that_a_run_started_from_is_named(
    writer: RunFolderWriter, origin: dict[str, Any], sentence: str
) -> None:
    writer.write("private", starts_from=ORIGIN | origin)

    assert sentence in unescape(write_report(writer.out).read_text())


@pytest.mark.usefixtures("blank_plots")
def test_a_run_without_either_says_nothing_of_them(writer: RunFolderWriter) -> None:
    writer.write("private")

    page = write_report(writer.out).read_text()

    assert "optimistic" not in page
    assert "SHA-256" not in page
