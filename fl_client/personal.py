"""The only place that says which model a hospital measures: the received one, or one of its own."""

import hashlib
import logging
import math
from collections.abc import Mapping

import numpy as np
from safetensors.numpy import save
from torch import nn

from fl_client.durable_file import write_durably
from fl_client.evaluation import evaluate
from fl_client.inputs import load_measured_model, load_model
from fl_client.preprocessing import prepare
from fl_client.site import Site
from fl_client.strategy_state import StrategyState
from fl_client.validation import validation_records
from fl_contract.array_record import Arrays
from fl_contract.messages import Request
from strategies.client_registry import make_client_half

FOLDER = "personal"

logger = logging.getLogger("fl_client")


def model_to_measure(site: Site, request: Request, received: Arrays) -> nn.Module:
    """The model that the hospital measures after a round: by what it kept in its last round up to this one.

    Raises:
        RefusalError: INVALID_REQUEST: the received arrays are not what of the study's model travels, or not finite.
    """
    return _choose(site, request, received)[1]


def keep_personal_model(site: Site, request: Request, received: Arrays) -> None:
    """Leave the hospital's own model of a personalised run in the hospital's folder, in place of an earlier round's.

    A study of one shared model, and a hospital that never trained in the run, leave nothing.

    Raises:
        RefusalError: See `model_to_measure`.
    """
    if not site.study.is_personal or not _state(site, request):
        return
    name, model = _choose(site, request, received)
    folder = site.folder / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{hashlib.sha256(request.run.encode()).hexdigest()[:16]}.safetensors"
    arrays = {key: np.asarray(tensor.numpy(), order="C") for key, tensor in model.state_dict().items()}
    about = {"study": site.study.name, "run": request.run, "round": str(request.server_round), "model": name}
    if not path.exists():
        logger.warning(
            "run %s: this hospital's own model is in %s/%s, and anew after each measured round; nothing sends it",
            *(request.run, FOLDER, path.name),
        )
    write_durably(path, save(arrays, metadata=about))


def _state(site: Site, request: Request) -> Arrays:
    return StrategyState(site.folder, request.run).before(request.server_round + 1)


def _choose(site: Site, request: Request, received: Arrays) -> tuple[str, nn.Module]:
    if not site.study.is_personal:
        return "global", load_measured_model(site, received)
    model = load_model(site, received)
    half = make_client_half(site.study, model, control={}, state=_state(site, request))
    candidates = half.candidates()
    losses = _validation_losses(site, candidates) if len(candidates) > 1 else {}
    name = min(candidates, key=lambda each: losses.get(each, 0.0))
    return name, candidates[name]


def _validation_losses(site: Site, candidates: Mapping[str, nn.Module]) -> dict[str, float]:
    """Of each candidate on the validation patients; infinite where it has none."""
    records = site.load_records().train
    examples = prepare(validation_records(site, records), site.study.data_schema, train=records)
    losses = {}
    for name, model in candidates.items():
        try:
            loss = evaluate(model, examples, site.study.task).loss
        except ValueError:  # outputs that are not finite
            loss = math.inf
        losses[name] = loss if math.isfinite(loss) else math.inf
    return losses
