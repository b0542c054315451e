"""What the benchmark of unequal hospitals says of its data is so, and no strategy is left out of it."""

import heterogeneity
import numpy as np
import pandas as pd
import pytest

from fl_contract.strategy_settings import strategy_names


def patients_of(numbers: range) -> pd.DataFrame:
    """Every other one with the disease."""
    return pd.DataFrame({
        "age": np.arange(len(numbers), dtype=float),
        "outcome": [str(number % 2) for number in numbers],
        "patient": [f"p{number}" for number in numbers],
    }, index=numbers)  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_one_hospital_has_four_fifths_and_every_patient_is_dealt_once(seed: int) -> None:
    train, test = patients_of(range(300)), patients_of(range(300, 400))

    tables = heterogeneity.deal(train, test, seed)

    counts = [int((table["fold"] == "train").sum()) for table in tables.values()]
    assert counts == [240, 20, 20, 20]
    dealt = pd.concat(list(tables.values()))
    assert sorted(dealt["patient"]) == sorted([*train["patient"], *test["patient"]])
    assert set(dealt.loc[dealt["fold"] == "test", "patient"]) == set(test["patient"])


@pytest.mark.parametrize("seed", range(5))
def test_every_hospitals_held_out_patients_are_of_both_classes_alike(seed: int) -> None:
    tables = heterogeneity.deal(patients_of(range(300)), patients_of(range(300, 400)), seed)

    for table in tables.values():
        outcomes = table.loc[table["fold"] == "test", "outcome"].value_counts()
        assert sorted(outcomes) in ([12, 12], [12, 13], [13, 13])  # 50 of a class at four hospitals


def test_small_hospitals_hold_little_but_one_class() -> None:
    minorities = []
    for seed in range(40):
        tables = heterogeneity.deal(patients_of(range(300)), patients_of(range(300, 400)), seed)
        for name in ("hospital-2", "hospital-3", "hospital-4"):
            train = tables[name][tables[name]["fold"] == "train"]
            minorities.append(train["outcome"].value_counts(normalize=True).reindex(["0", "1"], fill_value=0).min())

    # Of Beta(0.1, 0.1) half lies within 0.001 of 0 or 1; an even deal would give a minority of 0.4 or so.
    assert np.median(minorities) < 0.1


def test_every_strategy_has_a_line() -> None:
    heterogeneity.check_entries()


def test_a_strategy_without_a_line_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heterogeneity, "strategy_names", lambda: (*strategy_names(), "brand-new"))

    with pytest.raises(SystemExit, match=r"\['brand-new'\] have no settings here"):
        heterogeneity.check_entries()


def test_a_line_with_more_choices_than_the_others_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    more = heterogeneity.entry("fedavg", heterogeneity.grid(learning_rate=(0.1, 0.2, 0.3, 0.4, 0.5)))
    monkeypatch.setitem(heterogeneity.STRATEGIES, "fedavg", more)

    with pytest.raises(SystemExit, match=r"\['fedavg'\] do not have 4 choices"):
        heterogeneity.check_entries()
