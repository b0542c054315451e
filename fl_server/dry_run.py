"""What a study will do, said before it does it."""

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from fl_contract.models import build_model
from fl_contract.study import Study
from fl_contract.tasks import num_outputs


def describe_simulation(study: Study, console: Console) -> None:
    """Print the study in four lines: hospitals, model, rounds and bytes, privacy."""
    model = build_model(
        study.model,
        input_shape=study.data_schema.input_shape,
        num_outputs=num_outputs(study.num_classes),
        seed=study.seed,
    )
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    sites = study.simulation.num_sites
    lines = [
        f"{sites} virtual hospitals share {study.simulation.dataset} unequally (alpha {study.simulation.alpha:g}, "
        f"seed {study.seed}); {study.simulation.test_fraction:.0%} of each one's patients are held out",
        f"{study.model.kind} model of {num_parameters:,} parameters, {study.strategy.name}, at most {study.num_rounds} "
        f"rounds, a quorum of {study.federation.min_sites}",
        f"about {_bytes(3 * size * study.num_rounds)} for each hospital (the model down twice and up once a round)",
        _describe_privacy(study),
    ]
    console.print(f"[bold]{escape(study.title)}[/]", highlight=False)
    for line in lines:
        console.print(Padding(line, (0, 0, 0, 2)), highlight=False)
    console.print()


def _describe_privacy(study: Study) -> str:
    if not study.is_private:
        return "no differential privacy"
    privacy = study.privacy
    return (
        f"differential privacy per {privacy.unit}: ε at most {privacy.epsilon:g} at δ {privacy.delta:g} for the whole "
        f"run; each hospital's own budget is {study.simulation.epsilon_budget:g}"
    )


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
