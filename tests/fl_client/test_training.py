"""Training without privacy is repeatable to the bit; training with it leaves through noisy steps alone."""

import inspect
from typing import Any

import pytest
import torch
from schemas import TWO_CLASSES, schema_of
from torch import Tensor, nn

from fl_client.preprocessing import Examples
from fl_client.training import Recipe, make_optimizer, round_generator, train, train_with_privacy
from fl_contract.models import build_model
from fl_contract.models.mlp import MlpSettings
from fl_contract.study_tables import UNUSABLE_OPTIMIZERS, TrainingSettings
from fl_contract.tasks import task_of
from fl_contract.tasks.task import Task
from privacy.dp_sgd import train_privately
from privacy.plan import PrivacyPlan
from privacy.units import Units
from strategies.fedsgd import FedSGDClient


@pytest.fixture
def examples() -> Examples:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.rand(40, 3, generator=generator) * 2 - 1
    return Examples(inputs=inputs, labels=(inputs.sum(dim=1) > 0).long())


@pytest.fixture
def plan() -> PrivacyPlan:
    return PrivacyPlan(
        epsilon=8.0,
        delta=1e-3,
        clip_norm=0.5,
        sampling_rate=0.5,
        steps_per_round=3,
        num_rounds=2,
        noise_multiplier=3.0,
        nominal_units=40,
    )


TASK = TWO_CLASSES


def settings_of(**changes: Any) -> TrainingSettings:
    raw = {"learning-rate": 0.1, "batch-size": 8} | {key.replace("_", "-"): changes[key] for key in changes}
    return TrainingSettings.parse(raw, origin="test")


def recipe_of(**changes: Any) -> Recipe:
    return Recipe(task=TASK, settings=settings_of(**changes))


def new_model() -> nn.Module:
    return build_model(MlpSettings(kind="mlp"), schema_of((3,)), num_outputs=1, seed=1)


def weights_after(
    examples: Examples, settings: TrainingSettings, *, seed: int = 1, site: str = "hospital-1", server_round: int = 1
) -> Tensor:
    model = new_model()
    train(model, examples, Recipe(task=TASK, settings=settings), round_generator(seed, site, server_round))
    return flatten(model)


def flatten(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_same_seed_site_and_round_give_the_same_weights_to_the_bit(examples: Examples) -> None:
    assert torch.equal(weights_after(examples, settings_of()), weights_after(examples, settings_of()))


USABLE_OPTIMIZERS = [
    name
    for name, member in vars(torch.optim).items()
    if inspect.isclass(member)
    and issubclass(member, torch.optim.Optimizer)
    and member is not torch.optim.Optimizer
    and name not in UNUSABLE_OPTIMIZERS
]


@pytest.mark.parametrize("other", [{"seed": 2}, {"site": "hospital-2"}, {"server_round": 2}])
def test_another_seed_site_or_round_draws_other_batches(examples: Examples, other: dict[str, Any]) -> None:
    assert not torch.equal(weights_after(examples, settings_of(), **other), weights_after(examples, settings_of()))


def test_each_record_is_used_once_an_epoch(examples: Examples) -> None:
    seen: list[Tensor] = []
    model = new_model()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    train(model, examples, recipe_of(local_epochs=2), round_generator(1, "hospital-1", 1))

    # 40 records in batches of 8 are 5 steps an epoch.
    assert [len(batch) for batch in seen] == [8] * 10
    for epoch in (seen[:5], seen[5:]):
        assert sorted(torch.cat(epoch).tolist()) == sorted(examples.inputs.tolist())


def test_steps_instead_of_epochs_go_on_over_as_many_epochs_as_they_need(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def count(outputs: Tensor, _: Tensor) -> Tensor:
        sizes.append(len(outputs))
        return outputs.sum()

    monkeypatch.setattr(TASK, "batch_loss", count)

    weights_after(examples, settings_of(batch_size=16, local_steps=7))

    assert sizes == [16, 16, 8] * 2 + [16]  # 40 records an epoch


def test_as_many_steps_as_an_epoch_has_are_that_epoch(examples: Examples) -> None:
    by_steps = weights_after(examples, settings_of(local_steps=10))

    assert torch.equal(by_steps, weights_after(examples, settings_of(local_epochs=2)))


def test_a_step_moves_the_weights_by_the_rate_times_the_mean_gradient() -> None:
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    examples = Examples(inputs=torch.tensor([[1.0], [0.5]]), labels=torch.tensor([1, 0]))

    train(model, examples, recipe_of(learning_rate=2.0), round_generator(1, "hospital-1", 1))

    # At probability 1/2 the gradients by weight and bias are (1/2 - y) * (x, 1): (-0.5, -0.5) and (0.25, 0.5).
    # Their means are -0.125 and 0.
    assert model.weight.item() == 0.25
    assert model.bias.item() == 0.0


@pytest.mark.parametrize("batch_size", [1, 7, 8, 40, 100])
def test_a_full_batch_is_one_step_by_the_gradient_over_all_records(examples: Examples, batch_size: int) -> None:
    seen: list[Tensor] = []
    model, at_once = new_model(), new_model()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    recipe = Recipe(task=TASK, settings=settings_of(batch_size=batch_size), is_full_batch=True)
    TASK.batch_loss(at_once(examples.inputs), examples.labels).backward()

    train(model, examples, recipe, round_generator(1, "hospital-1", 1))

    assert torch.equal(torch.cat(seen), examples.inputs)
    assert max(len(batch) for batch in seen) == min(batch_size, 40)
    for moved, parameter in zip(model.parameters(), at_once.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(moved, parameter - 0.1 * parameter.grad, atol=1e-7)


def test_the_gradient_that_a_private_hospital_sends_is_the_noised_one_of_its_step(
    examples: Examples, plan: PrivacyPlan
) -> None:
    model, received = new_model(), new_model()
    half = FedSGDClient(model, control={}, state={})
    recipe = Recipe(task=TASK, settings=settings_of(private_learning_rate=0.25), half=half)

    train_with_privacy(model, examples, Units.records(len(examples)), recipe, plan, 1)

    sent = half.outgoing()
    for (name, moved), before in zip(model.named_parameters(), received.parameters(), strict=True):
        assert torch.allclose(moved, before - 0.25 * torch.from_numpy(sent[name]), atol=1e-6)
    # Noise of 3 * 0.5 / 20 on each number, far above a clipped mean of at most 0.5 over all.
    assert torch.cat([torch.from_numpy(each).flatten() for each in sent.values()]).std() > 0.05


def test_a_full_batch_whose_records_are_held_against_each_other_is_not_split() -> None:
    survival = task_of(schema_of((3,), task="survival", **{"time-unit": "days"}))
    sizes: list[int] = []
    model = nn.Linear(3, 1)
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    outcomes = torch.stack([torch.arange(1.0, 41.0), torch.arange(40) % 2], dim=1)
    examples = Examples(inputs=torch.ones(40, 3), labels=outcomes)

    train(
        model,
        examples,
        Recipe(task=survival, settings=settings_of(), is_full_batch=True),
        round_generator(1, "hospital-1", 1),
    )

    assert sizes == [40]


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("Adam", {"weight_decay": 0.01}),
        ("RMSprop", {"alpha": 0.9}),
        *((name, {}) for name in USABLE_OPTIMIZERS),
    ],
)
def test_any_optimiser_of_torch_trains_with_and_without_privacy(
    examples: Examples, plan: PrivacyPlan, optimizer: str, options: dict[str, float | bool]
) -> None:
    settings = settings_of(optimizer=optimizer, learning_rate=0.01, optimizer_options=options)
    private, before = new_model(), flatten(new_model())

    train_with_privacy(
        private,
        examples,
        Units.records(len(examples)),
        Recipe(task=TASK, settings=settings),
        plan,
        plan.steps_per_round,
    )

    for after in (weights_after(examples, settings), flatten(private)):
        assert after.isfinite().all()
        assert not torch.equal(after, before)


def test_the_optimisers_options_are_the_studys() -> None:
    optimizer = make_optimizer(new_model(), settings_of(optimizer_options={"momentum": 0.75}), 0.5)

    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.5, 0.75)


def test_frozen_parameters_are_not_trained(examples: Examples) -> None:
    model = new_model()
    frozen = next(model.parameters()).requires_grad_(False)
    before = frozen.clone()

    train(
        model,
        examples,
        recipe_of(optimizer_options={"weight_decay": 0.5}),
        round_generator(1, "hospital-1", 1),
    )

    assert torch.equal(frozen, before)


def test_the_processs_random_state_is_left_alone(examples: Examples, plan: PrivacyPlan) -> None:
    before = torch.random.get_rng_state()

    weights_after(examples, settings_of())
    train_with_privacy(
        new_model(),
        examples,
        Units.records(len(examples)),
        recipe_of(),
        plan,
        plan.steps_per_round,
    )

    assert torch.equal(torch.random.get_rng_state(), before)


def test_private_training_tells_the_steps_that_ran_and_nothing_else(examples: Examples, plan: PrivacyPlan) -> None:
    model = new_model()

    told = train_with_privacy(
        model,
        examples,
        Units.records(len(examples)),
        recipe_of(),
        plan,
        plan.steps_per_round,
    )

    assert type(told) is int
    assert told == 3
    for parameter in model.parameters():
        assert parameter.grad is None
        assert not parameter.__dict__


def test_only_the_steps_that_were_granted_run(examples: Examples, plan: PrivacyPlan) -> None:
    assert train_with_privacy(new_model(), examples, Units.records(len(examples)), recipe_of(), plan, 2) == 2


def test_no_seed_repeats_the_noise_of_private_training(examples: Examples, plan: PrivacyPlan) -> None:
    after = []
    for _ in range(2):
        torch.manual_seed(1)
        model = new_model()
        train_with_privacy(
            model,
            examples,
            Units.records(len(examples)),
            recipe_of(),
            plan,
            plan.steps_per_round,
        )
        after.append(flatten(model))

    assert not torch.equal(*after)


@pytest.mark.parametrize(("private_rate", "used"), [(None, 0.1), (16.0, 16.0)])
def test_noisy_steps_use_their_own_rate_if_the_study_sets_one(
    examples: Examples,
    plan: PrivacyPlan,
    monkeypatch: pytest.MonkeyPatch,
    private_rate: float | None,
    used: float,
) -> None:
    rates = []

    def spy(model: nn.Module, optimizer: torch.optim.Optimizer, *args: Any, **options: Any) -> Any:
        rates.append(optimizer.defaults["lr"])
        return train_privately(model, optimizer, *args, **options)

    monkeypatch.setattr("fl_client.training.train_privately", spy)
    changes = {} if private_rate is None else {"private_learning_rate": private_rate}

    train_with_privacy(
        new_model(),
        examples,
        Units.records(len(examples)),
        recipe_of(**changes),
        plan,
        plan.steps_per_round,
    )

    assert rates == [used]


@pytest.mark.parametrize(
    ("task", "model", "labels"),
    [
        (
            task_of(schema_of((3,), task="multi-label", classes=["a", "b"])),
            nn.Linear(3, 2),
            (torch.arange(80) % 3 == 0).float().reshape(40, 2),
        ),
        (
            task_of(schema_of((3,), task="regression", target={"minimum": 0.0, "maximum": 9.0})),
            nn.Linear(3, 1),
            torch.linspace(-1, 1, 40),
        ),
        (
            task_of(schema_of((1, 4, 4), task="segmentation", classes=["a", "b", "c"])),
            nn.Sequential(nn.Linear(3, 48), nn.Unflatten(1, (3, 4, 4))),
            (torch.arange(640) % 3).reshape(40, 4, 4).to(torch.uint8),
        ),
    ],
    ids=["multi-label", "regression", "segmentation"],
)
def test_every_task_that_is_private_trains_by_noisy_steps(
    examples: Examples, plan: PrivacyPlan, task: Task, model: nn.Module, labels: Tensor
) -> None:
    before = flatten(model)
    with_labels = Examples(inputs=examples.inputs, labels=labels)

    recipe = Recipe(task=task, settings=settings_of())
    steps = train_with_privacy(model, with_labels, Units.records(40), recipe, plan, 2)

    assert steps == 2
    assert task.NOT_PRIVATE == ""
    assert flatten(model).isfinite().all()
    assert not torch.equal(flatten(model), before)
