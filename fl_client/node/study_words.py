"""A study of a bundle in words, for the person who approves it: read by the installed release, never by the bundle."""

import tomllib

from fl_client.node.bundle_diff import visible
from fl_contract.errors import SettingError
from fl_contract.study import Study


def study_in_words(name: str, toml: bytes) -> list[str]:
    """Lines that say what a study is about, how much it trains, what privacy it asks for, and what leaves a hospital.

    A study that the installed release cannot read is said to be so, with the reason: it is then to be read in the diff.
    """
    try:
        study = Study.parse(tomllib.loads(toml.decode("utf-8")), origin=f"{name}.toml")
    except (SettingError, ValueError, RecursionError) as error:
        return [f"{name}: the installed release cannot read it; read studies/{name}.toml itself:", visible(str(error))]
    lines = [
        f"{name}: {study.title}",
        f"task      {_task(study)}",
        f"features  {_features(study)}",
        f"training  {study.model.kind} model, {study.strategy.name}, at most {study.num_rounds} rounds",
        f"privacy   {_privacy(study)}",
        f"leaves    {_what_leaves(study)}",
    ]
    return [visible(line) for line in lines]


def _task(study: Study) -> str:
    classes = getattr(study.data_schema, "classes", ())
    return study.data_schema.task + (f" of {', '.join(map(str, classes))}" if classes else "")


def _features(study: Study) -> str:
    schema, columns = study.data_schema, study.data_schema.columns
    if not columns:
        return schema.kind
    return f"{schema.kind} of {len(columns)}: {', '.join(column.name for column in columns)}"


def _privacy(study: Study) -> str:
    privacy = study.privacy
    if not study.is_private:
        return "NO differential privacy; a site whose policy has require-privacy = true refuses it"
    return (
        f"ε at most {privacy.epsilon:g} at δ {privacy.delta:g} per {privacy.unit} for a run; less if the policy says so"
    )


def _what_leaves(study: Study) -> str:
    codec = study.communication.codec
    form = "the model as trained here" if codec == "none" else f"the update of the model, coded by {codec}"
    noise = ", with noise for differential privacy" if study.is_private else ", without noise"
    parts = [f"each round {form}{noise}, and the declared number of patients"]
    if study.strategy.SENDS_LOSS:
        parts.append("the exact training loss")
    if study.needs_statistics:
        parts.append("before round 1 counts and sums of features, if policy.statistics allows it")
    parts.append("measurements of held-out patients as policy.measurements says")
    return "; ".join(parts)
