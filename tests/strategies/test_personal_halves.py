"""What stays at a hospital in each personalised algorithm, by its paper's formula in plain arithmetic on one weight."""

import numpy as np
import pytest
import torch
from torch import nn

from fl_contract.array_record import Arrays
from fl_contract.study_file import Scalar, load_study
from strategies.apfl import APFLClient
from strategies.client_half import ClientHalf
from strategies.client_registry import make_client_half
from strategies.ditto import DittoClient
from strategies.fedbn import FedBNClient
from strategies.fedper import FedPerClient
from strategies.fedrep import FedRepClient
from strategies.fine_tuning import FineTuningClient

RATE, STEPS, TARGET = 0.1, 3, 2.0
"""A hospital's loss is (w - target)^2 / 2."""


def one_weight(value: float) -> nn.Module:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, value)
    return model


def two_weights(body: float, head: float) -> nn.Sequential:
    return nn.Sequential(one_weight(body), one_weight(head))


def train_locally(model: nn.Module, half: ClientHalf, num_steps: int = STEPS) -> list[list[float]]:
    """The weights after each step."""
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.0), []
    half.attach(optimizer, num_steps=num_steps)
    if half.personal is not None:
        half.attach_personal(torch.optim.SGD(half.personal.parameters(), lr=RATE))
    one = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(num_steps):
        half.step_beside(lambda network: ((network(one) - TARGET) ** 2 / 2).sum())
        optimizer.zero_grad()
        ((model(one) - TARGET) ** 2 / 2).sum().backward()
        optimizer.step()
        seen.append([parameter.item() for parameter in model.parameters()])
    return seen


def number(arrays: Arrays, name: str = "personal/weight") -> float:
    return float(arrays[name].item())


def test_two_rounds_of_ditto_follow_the_paper() -> None:
    pull, kept, v = 0.7, dict[str, np.ndarray](), 0.5
    for received in (0.5, 0.9):
        model = one_weight(received)
        half = DittoClient(model, state=kept, pull=pull)
        train_locally(model, half)
        kept = half.state()

        w = received
        for _ in range(STEPS):
            v -= RATE * ((v - TARGET) + pull * (v - received))
            w -= RATE * (w - TARGET)
        assert number(kept) == pytest.approx(v, rel=1e-12)
        assert number(half.outgoing(), "weight") == pytest.approx(w, rel=1e-12)
        assert list(half.outgoing()) == ["weight"]


@pytest.mark.parametrize("is_adaptive", [False, True], ids=["fixed", "learned"])
def test_two_rounds_of_apfl_follow_the_paper(is_adaptive: bool) -> None:
    kept, v, a = dict[str, np.ndarray](), 0.5, 0.25
    for received in (0.5, 0.9):
        model = one_weight(received)
        half = APFLClient(model, state=kept, alpha=0.25, is_adaptive=is_adaptive)
        train_locally(model, half)
        kept = half.state()

        w = received
        for step in range(STEPS):
            slope = a * v + (1 - a) * w - TARGET  # of the mixture
            new_a = a - RATE * (v - w) * slope if is_adaptive and step == 0 else a
            w, v, a = w - RATE * (w - TARGET), v - RATE * a * slope, min(max(new_a, 0.0), 1.0)
        assert number(kept) == pytest.approx(v, rel=1e-12)
        assert number(kept, "alpha") == pytest.approx(a, rel=1e-12)
        assert number(half.outgoing(), "weight") == pytest.approx(w, rel=1e-12)
    assert (a != 0.25) == is_adaptive

    (mixture,) = APFLClient(one_weight(1.5), state=kept, alpha=0.25, is_adaptive=is_adaptive).candidates().values()

    assert next(mixture.parameters()).item() == pytest.approx(a * v + (1 - a) * 1.5, rel=1e-12)


@pytest.mark.parametrize(("own", "bound"), [(100.0, 0.0), (-100.0, 0.0)])
def test_the_share_of_the_own_model_that_apfl_learns_stays_a_share(own: float, bound: float) -> None:
    kept = {"personal/weight": np.array([[own]]), "alpha": np.array(0.5)}
    model = one_weight(TARGET)
    half = APFLClient(model, state=kept, alpha=0.9, is_adaptive=True)

    train_locally(model, half, num_steps=1)

    assert number(half.state(), "alpha") == bound  # the own model is far off, so its share falls below 0


@pytest.mark.parametrize(
    ("head_share", "num_steps", "turns"),
    [
        (0.5, 4, "hhbb"),
        (0.6, 3, "hhb"),
        (0.01, 3, "hbb"),
        (0.99, 3, "hhb"),
        (0.5, 2, "hb"),
    ],
)
def test_fedrep_trains_the_head_and_then_the_body(head_share: float, num_steps: int, turns: str) -> None:
    model = two_weights(1.0, 0.5)
    half = FedRepClient(model, state={}, kept={"1.weight"}, head_share=head_share)

    seen = [[1.0, 0.5], *train_locally(model, half, num_steps)]

    body, head = 1.0, 0.5
    for step, turn in enumerate(turns):
        slope = body * head - TARGET
        body, head = (body, head - RATE * slope * body) if turn == "h" else (body - RATE * slope * head, head)
        assert seen[step + 1] == pytest.approx([body, head], rel=1e-12)


def test_a_round_of_one_step_trains_head_and_body() -> None:
    model = two_weights(1.0, 0.5)

    ((body, head),) = train_locally(model, FedRepClient(model, state={}, kept={"1.weight"}, head_share=0.5), 1)

    assert body != 1.0
    assert head != 0.5


@pytest.mark.parametrize("kind", [FedBNClient, FedPerClient], ids=["fedbn", "fedper"])
def test_what_stays_is_laid_over_the_received_model_and_kept_after_training(
    kind: type[FedBNClient] | type[FedPerClient],
) -> None:
    model = two_weights(1.0, 0.5)
    half = kind(model, state={"1.weight": np.array([[0.25]])}, kept={"1.weight"})
    assert [parameter.item() for parameter in model.parameters()] == [1.0, 0.25]

    last = train_locally(model, half)[-1]

    assert {name: array.item() for name, array in half.state().items()} == {"1.weight": last[1]}
    (measured,) = kind(two_weights(7.0, 7.0), state=half.state(), kept={"1.weight"}).candidates().values()
    assert [parameter.item() for parameter in measured.parameters()] == [7.0, last[1]]


def test_whole_number_statistics_stay_too() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2))
    kept = {name for name in model.state_dict() if name.startswith("1.")}
    state = {**FedBNClient(model, state={}, kept=kept).state(), "1.num_batches_tracked": np.array(7)}

    half = FedBNClient(nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2)), state=state, kept=kept)

    assert half.state()["1.num_batches_tracked"].item() == 7
    assert set(half.state()) == kept


def test_fine_tuning_offers_the_shared_the_tuned_and_a_model_trained_alone() -> None:
    kept, alone, tuned = dict[str, np.ndarray](), 0.5, 0.0
    for received in (0.5, 0.9):
        model = one_weight(received)
        half = FineTuningClient(model, state=kept)
        tuned = train_locally(model, half)[-1][0]
        kept = half.state()
        for _ in range(STEPS):
            alone -= RATE * (alone - TARGET)

    candidates = FineTuningClient(one_weight(1.5), state=kept).candidates()

    found = {name: next(each.parameters()).item() for name, each in candidates.items()}
    assert found == pytest.approx({"global": 1.5, "personal": tuned, "alone": alone}, rel=1e-12)
    assert next(iter(found)) == "global"  # which is taken where several are as good


def test_a_hospital_that_never_trained_has_the_shared_model_only() -> None:
    assert list(FineTuningClient(one_weight(1.5), state={}).candidates()) == ["global"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fedper", FedPerClient),
        ("fedrep", FedRepClient),
        ("ditto", DittoClient),
        ("apfl", APFLClient),
        ("fine-tuning", FineTuningClient),
    ],
)
@pytest.mark.parametrize("trainers", ["all", "hospital-1", "pooled"])
def test_a_study_makes_the_half_that_it_names_and_a_plain_one_where_one_site_trains(
    name: str, kind: type[ClientHalf], trainers: str
) -> None:
    overrides: dict[str, Scalar] = {"model.kind": "mlp", "privacy.mechanism": "none", "federation.min-sites": 1}
    study = load_study("breast-cancer", overrides={**overrides, "strategy.name": name, "simulation.trainers": trainers})

    half = make_client_half(study, study.build_model(), control={}, state={})

    assert type(half) is (kind if trainers == "all" else ClientHalf)
