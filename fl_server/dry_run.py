"""What a study will do, said before it does it."""

from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from fl_contract.errors import SettingError
from fl_contract.study import Study
from fl_contract.study_tables import SimulationSettings
from fl_server.traffic import expect_traffic
from privacy.model_check import check_dp_compatible
from privacy.plan import PrivacyPlan
from strategies.regions import Regions


def check_simulation(study: Study) -> None:
    """Raise what a simulation of the study would stop for before its first round.

    Raises:
        SettingError: There are no data to simulate with, the quorum cannot be reached, or the weights or regions do not
            name the virtual hospitals.
        PrivacyError: The study is private and its model cannot be.
    """
    simulation = study.simulation
    if simulation.dataset is None:
        raise SettingError(
            f"study={study.name!r} sets no simulation.dataset; it runs at hospitals with a site.toml of their own only"
        )
    _check_files(simulation)
    trainers = simulation.site_names if simulation.trainers == "all" else (simulation.trainers,)
    if study.federation.min_sites > len(trainers):
        raise SettingError(
            f"federation.min-sites={study.federation.min_sites}; expected at most the {len(trainers)} virtual "
            f"hospitals that train (simulation.num-sites, simulation.trainers)"
        )
    if study.strategy.weighting == "institution" and len(trainers) > 1:
        named = set(study.strategy.institution_weights)
        if named != set(trainers):
            raise SettingError(
                f"strategy.institution-weights names {sorted(named)}; expected exactly the virtual hospitals, "
                f"{list(trainers)}"
            )
    _check_regions(study, trainers)
    if study.is_private:
        check_dp_compatible(study.build_model())


def _check_regions(study: Study, trainers: tuple[str, ...]) -> None:
    federation = study.federation
    if not federation.regions or len(trainers) == 1:
        return
    if unknown := sorted(set(federation.regions) - set(trainers)):
        raise SettingError(f"federation.regions names {unknown}; expected only the virtual hospitals, {list(trainers)}")
    Regions.for_sites(federation.regions, federation.min_per_region, trainers)


def _check_files(simulation: SimulationSettings) -> None:
    if not simulation.needs_files:
        if simulation.data:
            raise SettingError(
                f"simulation.data={simulation.data!r}; expected none for simulation.dataset={simulation.dataset!r}, "
                "which is built in"
            )
        return
    how = (
        f"set the folder that holds the files of {simulation.dataset}: --set simulation.data=FOLDER; "
        f"docs/studies/{simulation.dataset}.md says which they are"
    )
    if not simulation.data:
        raise SettingError(f"simulation.data is missing; {how}")
    if not Path(simulation.data).is_dir():
        raise SettingError(f"simulation.data={simulation.data!r} is no folder on this machine; {how}")


def describe_noise(study: Study, console: Console) -> None:
    """Print how much noise keeps the promise of a private study; about two seconds.

    Raises:
        PrivacyError: No noise keeps it.
    """
    if not study.is_private:
        return
    privacy = study.privacy
    plan = PrivacyPlan.calibrate(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        clip_norm=privacy.clip_norm,
        sampling_rate=privacy.sampling_rate,
        steps_per_round=privacy.steps_per_round,
        num_rounds=study.num_rounds,
        nominal_units=1,  # the noise does not depend on it, and each hospital checks delta against its own
    )
    line = (
        f"noise multiplier {plan.noise_multiplier:.3g} over {plan.total_spend.steps} steps, each of a random "
        f"{plan.sampling_rate:.0%} of a hospital's records"
    )
    console.print(Padding(Text(line), (0, 0, 0, 2)))


def describe_simulation(study: Study, console: Console) -> None:
    """Print the study in a few lines: virtual hospitals, model, rounds and bytes, privacy."""
    budget = f"; each hospital's own budget is {study.simulation.epsilon_budget:g}"
    _print(study, [_describe_hospitals(study), *_describe_study(study, budget)], console)


def describe_deployment(study: Study, console: Console) -> None:
    """Print the study in a few lines: model, rounds and bytes, privacy."""
    _print(study, _describe_study(study, "; each hospital has a budget of its own"), console)


def _print(study: Study, lines: list[str], console: Console) -> None:
    console.print(Text(study.title, style="bold"))
    for line in lines:
        console.print(Padding(Text(line), (0, 0, 0, 2)))
    console.print()


def _describe_study(study: Study, budget: str) -> list[str]:
    model = study.build_model()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return [
        f"{study.model.kind} model of {num_parameters:,} parameters, {study.strategy.name}, at most {study.num_rounds} "
        f"rounds, a quorum of {study.federation.min_sites}",
        expect_traffic(study, model).in_words(study),
        _describe_privacy(study, budget),
        *_describe_central_privacy(study),
    ]


def _describe_hospitals(study: Study) -> str:
    simulation = study.simulation
    if simulation.has_hospitals:
        return f"the {simulation.num_sites} hospitals of {simulation.dataset}; the data say who is held out"
    return (
        f"{simulation.num_sites} virtual hospitals share {simulation.dataset} unequally (alpha {simulation.alpha:g}, "
        f"seed {study.seed}); {_describe_held_out(simulation)} held out"
    )


def _describe_held_out(simulation: SimulationSettings) -> str:
    if simulation.needs_files:
        return "the data's own test images are"
    return f"{simulation.test_fraction:.0%} of each one's patients are"


def _describe_privacy(study: Study, budget: str) -> str:
    if not study.is_private:
        return "no differential privacy"
    privacy = study.privacy
    return (
        f"differential privacy per {privacy.unit}: ε at most {privacy.epsilon:g} at δ {privacy.delta:g} for the whole "
        f"run{budget}"
    )


def _describe_central_privacy(study: Study) -> list[str]:
    central = study.central_privacy
    if central is None or not study.protects_hospitals:
        return []
    return [
        f"differential privacy per hospital, added by the coordinator: ε at most {central.epsilon:g} at δ "
        f"{central.delta:g} for all models of the run"
    ]
