"""The coordinator's Flower app: a run from its settings to its final model."""

import time
import uuid
from collections.abc import Mapping
from logging import INFO

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.supercore import log
from torch import nn

from fl_contract.coded_update import update_form
from fl_contract.errors import CheckpointError, ConsiliumError, SettingError
from fl_contract.exchanged import exchanged_names
from fl_contract.initial_weights import load_initial_weights
from fl_contract.messages import Request, SitePlan
from fl_contract.models import buffer_names
from fl_contract.study import Study
from fl_server.averaging import ModelAverage, first_averaged_round
from fl_server.best_round import BestRound
from fl_server.buffered_loop import BufferedLoop
from fl_server.checkpoint import Checkpoint, read_checkpoint
from fl_server.local_grid import LocalGrid
from fl_server.model_file import write_model
from fl_server.roll_call import call_plans, call_roster
from fl_server.round_loop import RoundLoop
from fl_server.run_lock import hold_run
from fl_server.run_record import MODEL_FILE, RUN_FILE, RunRecord, read_header
from fl_server.settings import RunSettings, read_run_settings, variant_of
from fl_server.statistics import standardise_by_all
from fl_server.stopping import Stopping
from fl_server.summary import write_evaluations
from fl_server.traffic import expect_traffic
from fl_server.turnout import Turnout
from privacy.book_keeping import is_covered
from privacy.clipping import Method
from privacy.errors import PrivacyError
from privacy.model_check import check_dp_compatible
from strategies.central_privacy import CentralPrivacy, SpentRounds
from strategies.fedavg import FedAvg
from strategies.fedbuff import FedBuff
from strategies.participation import Roster
from strategies.registry import make_central_plan, make_central_strategy, make_strategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a study; the record in the run's folder says how it ended, whatever happens.

    Raises:
        ConsiliumError: The run could not start or go on.
    """
    settings = read_run_settings(context)
    with hold_run(settings.folder):
        _run_recorded(grid, settings)


def _run_recorded(grid: Grid, settings: RunSettings) -> None:
    checkpoint = _read_checkpoint(settings)
    if settings.resume and read_header(settings.folder).get("status") in ("completed", "converged"):
        log(INFO, "%s is complete already", settings.folder)
        return
    record = RunRecord(settings.folder)
    started = time.monotonic()
    try:
        _run(grid, settings, checkpoint, record)
        log(INFO, "Result in %s; for the report: fl-server report %s", settings.folder, settings.folder.parent)
    except Exception as error:
        reason = str(error) if isinstance(error, ConsiliumError | PrivacyError) else type(error).__name__
        record.finish("failed", reason=reason, seconds=time.monotonic() - started)
        raise


def _read_checkpoint(settings: RunSettings) -> Checkpoint | None:
    if not settings.resume:
        if (settings.folder / RUN_FILE).exists():
            raise SettingError(f"{settings.folder}: holds a run already; choose another folder, or resume it")
        return None
    checkpoint = read_checkpoint(settings.folder, fingerprint=settings.study.fingerprint)
    if checkpoint is None and not (settings.folder / RUN_FILE).exists():
        raise CheckpointError(f"{settings.folder}: holds no run to resume; start one without resume")
    return checkpoint


def _run(grid: Grid, settings: RunSettings, checkpoint: Checkpoint | None, record: RunRecord) -> None:
    started = time.monotonic()
    study = settings.study
    torch_model = study.build_model()
    if checkpoint is None and settings.earlier is None:
        load_initial_weights(torch_model, study, settings.weights)
    model = {name: tensor.numpy() for name, tensor in torch_model.state_dict().items()}
    request = Request(run=checkpoint.run if checkpoint else uuid.uuid4().hex, fingerprint=study.fingerprint)
    record.begin(
        study,
        run=request.run,
        variant=variant_of(study),
        engine="local" if isinstance(grid, LocalGrid) else "flower",
        num_parameters=sum(parameter.numel() for parameter in torch_model.parameters()),
        clipping=_clipping_method(study, torch_model),
    )
    if study.is_private:
        check_dp_compatible(torch_model)
    if checkpoint is None and settings.earlier is not None:
        model, origin = settings.earlier.read(study, variant=variant_of(study), like=model)
        record.start_from(origin)
    log(INFO, "Bytes %s", expect_traffic(study, torch_model).in_words(study))
    roster, silent = call_roster(grid, study, request)
    plans, refused = call_plans(grid, study, request, roster)
    record.agree(_site_table(plans), silent | refused)
    generator = np.random.default_rng(study.seed)
    turnout = Turnout.of_study(
        study, plans, buffer_names=buffer_names(torch_model), answers_in_turn=isinstance(grid, LocalGrid)
    )
    strategy = _make_strategy(study, roster.of_those(plans), plans, turnout, generator, torch_model, record)
    stopping = Stopping(study.stopping, [name for name, each in torch_model.named_parameters() if each.requires_grad])
    best, average = BestRound(), ModelAverage(first_averaged_round(study))
    if checkpoint is None:
        if settings.earlier is None:
            model = standardise_by_all(model, grid, study, request, roster.of_those(plans))
    else:
        model = checkpoint.model
        strategy.load_state(checkpoint.strategy)
        stopping.load_state(checkpoint.stopping)
        best.load_state(checkpoint.best)
        average.load_state(checkpoint.average)
        turnout.load_state(checkpoint.turnout, checkpoint.late, request, roster.of_those(plans).nodes)
        generator.bit_generator.state = checkpoint.generator
    last_round, seconds = (checkpoint.server_round, checkpoint.seconds) if checkpoint else (0, 0.0)
    record.keep_rounds(last_round)
    kind: type[RoundLoop] = BufferedLoop if isinstance(strategy, FedBuff) else RoundLoop
    loop = kind(
        grid=grid,
        study=study,
        strategy=strategy,
        generator=generator,
        record=record,
        request=request,
        plans=plans,
        stopping=stopping,
        best=best,
        average=average,
        exchanged=exchanged_names(study, torch_model),
        turnout=turnout,
        form=update_form(study),
    )
    model, evaluations = loop.run(model, last_round=last_round, seconds_before=seconds)
    write_model(record.folder / MODEL_FILE, model)
    write_evaluations(record.folder / "evaluation.json", evaluations)
    seconds += time.monotonic() - started
    if stopping.has_converged:
        record.finish("converged", reason=stopping.reason, seconds=seconds)
    else:
        record.finish("completed", reason="", seconds=seconds)


def _make_strategy(
    study: Study,
    roster: Roster,
    plans: Mapping[str, SitePlan],
    turnout: Turnout,
    generator: np.random.Generator,
    model: nn.Module,
    record: RunRecord,
) -> FedAvg | CentralPrivacy:
    """The study's strategy, inside hospital-level privacy if the study asks for it."""
    buffers = buffer_names(model)
    plan = make_central_plan(
        study,
        roster=roster,
        declared={site: plan.num_examples for site, plan in plans.items()},
        num_coordinates=sum(model.state_dict()[name].numel() for name in exchanged_names(study, model)),
    )
    if plan is None:
        return make_strategy(
            study,
            roster=roster,
            generator=generator,
            buffer_names=buffers,
            attendance=turnout.attendance,
            balance=turnout.balance,
        )
    spent_rounds = SpentRounds(count=record.noised_rounds(), store=record.keep_noised_rounds)
    return make_central_strategy(
        study,
        plan,
        roster=roster,
        generator=generator,
        buffer_names=buffers,
        spent_rounds=spent_rounds,
        attendance=turnout.attendance,
    )


def _clipping_method(study: Study, model: nn.Module) -> Method | None:
    """How hospitals will clip, which follows from the model alone; None without differential privacy."""
    if not study.is_private:
        return None
    return "book-keeping" if is_covered(model) else "hooks"


def _site_table(plans: Mapping[str, SitePlan]) -> dict[str, dict[str, float]]:
    return {
        site: {"num_examples": plan.num_examples, "noise_multiplier": plan.noise_multiplier}
        | ({"num_cores": plan.capacity.num_cores, "has_gpu": plan.capacity.has_gpu} if plan.capacity else {})
        for site, plan in sorted(plans.items())
    }
