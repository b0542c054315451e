"""The only place where a request's model and the hospital's patients become what training and measuring take.

Both are checked first: nothing is charged for a model or for patients with which nothing can be done.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from fl_client.data.records import Records, SiteRecords
from fl_client.data_rules import held_out_refusals, schema_refusals, training_refusals
from fl_client.outcomes import outcome_rules
from fl_client.preprocessing import Examples, prepare
from fl_client.refusals import gather, refuse_if_any
from fl_client.site import Site
from fl_client.strategy_state import StrategyState
from fl_client.validation import fitting_records
from fl_contract.array_record import Arrays
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.exchanged import exchanged_names
from fl_contract.messages import Request
from privacy.units import Units
from strategies.client_half import ClientHalf
from strategies.client_registry import make_client_half


def record_refusals(site: Site, records: SiteRecords) -> list[RefusalError]:
    """Everything for which the hospital's records keep it out of a run, in the order in which it is refused.

    Held-out records count where they would be measured on; that they are too few keeps nobody out.
    """
    study, policy = site.study, site.settings.policy
    schema, train = study.data_schema, records.train
    refusals = schema_refusals(schema, train, *([] if policy.measurements == "none" else [records.test]))
    if not outcome_rules(schema).num_unknown(train):
        with gather(refusals):
            refusals += training_refusals(
                schema,
                fitting_records(site, train),
                min_examples=policy.min_examples,
                allow_one_class=study.is_private or policy.allow_one_class,
            )
    if study.is_private or policy.measurements == "noised":
        with gather(refusals):
            privacy_units(site, train)
    return refusals


def training_examples(site: Site, records: Records) -> Examples:
    """The patients that the hospital trains on; those by whom it chooses a model are left out.

    Raises:
        RefusalError: They break the study's schema, are too few, or their outcomes are all alike.
    """
    schema = site.study.data_schema
    fitting = fitting_records(site, records)
    examples = prepare(fitting, schema, train=records)
    policy = site.settings.policy
    one_class = site.study.is_private or policy.allow_one_class
    refuse_if_any(training_refusals(schema, fitting, min_examples=policy.min_examples, allow_one_class=one_class))
    return examples


def privacy_units(site: Site, records: Records) -> Units:
    """Which records the study's privacy protects together.

    Raises:
        RefusalError: POLICY: the study protects patients, and the source does not say whose a record is.
    """
    if site.study.privacy.unit == "record":
        return Units.records(len(records))
    if records.patients is None:
        raise RefusalError(
            RefusalCode.POLICY,
            "privacy.unit='patient'; the source does not say whose a record is; name its column as source.patient in "
            "site.toml, or ask for a study by record",
        )
    return Units.patients(records.patients)


def held_out_examples(site: Site, records: SiteRecords) -> Examples:
    """The patients that the hospital measures on.

    Raises:
        RefusalError: They break the study's schema or are too few.
    """
    examples = prepare(records.test, site.study.data_schema, train=records.train)
    refuse_if_any(held_out_refusals(len(examples), min_examples=site.settings.policy.min_examples))
    return examples


def record_contents(records: Records) -> Iterator[bytes]:
    """Each record's content in a fixed form, for the ledger's fingerprint."""
    for row in range(len(records)):
        numbers = [each[row].tobytes() for each in (records.outcomes, records.masks) if each is not None]
        features, label = records.features[row].astype(np.float64), str(records.labels[row])  # however they are held
        yield b"".join([features.tobytes(), label.encode(), *numbers])


def load_model(site: Site, received: Arrays) -> nn.Module:
    """The study's model with the received weights.

    Raises:
        RefusalError: INVALID_REQUEST: they are not what of the study's model travels, or not finite.
    """
    model = site.build_model()
    return _load(model, received, exchanged_names(site.study, model))


def load_measured_model(site: Site, received: Arrays) -> nn.Module:
    """The model that a request to measure brings: the study's, or an ensemble of as many as came.

    Raises:
        RefusalError: As `load_model`.
    """
    if not site.study.strategy.IS_ENSEMBLE:
        return load_model(site, received)
    ensemble = site.study.build_ensemble(max(1, len(received) // len(site.study.build_model().state_dict())))
    return _load(ensemble, received, tuple(ensemble.state_dict()))


def _load(model: nn.Module, received: Arrays, names: Sequence[str]) -> nn.Module:
    own = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    expected = {name: (own[name].shape, str(own[name].dtype)) for name in names}
    if {name: (array.shape, str(array.dtype)) for name, array in received.items()} != expected:
        raise _invalid("the received arrays are not the study's model; expected its names and shapes")
    if bad := sorted(name for name, array in received.items() if not np.isfinite(array).all()):
        raise _invalid(f"the received arrays {bad} hold NaN or infinity; expected finite numbers")
    model.load_state_dict({name: torch.from_numpy(np.array({**own, **received}[name])) for name in own})
    return model


def make_half(site: Site, request: Request, model: nn.Module, control: Arrays) -> ClientHalf:
    """The client half of the study's algorithm, with what it kept at this hospital.

    Raises:
        RefusalError: INVALID_REQUEST: what came beside the model is not of it, or not what the algorithm sends.
    """
    trained = {
        name: (each.shape, str(each.detach().numpy().dtype))
        for name, each in model.named_parameters()
        if each.requires_grad
    }
    expected = trained if site.study.strategy.SENDS_CONTROL else {}
    if {name: (array.shape, str(array.dtype)) for name, array in control.items()} != expected:
        raise _invalid(f"control arrays {sorted(control)}; expected {sorted(expected)}, of the model's shapes")
    if bad := sorted(name for name, array in control.items() if not np.isfinite(array).all()):
        raise _invalid(f"control arrays {bad} hold NaN or infinity; expected finite numbers")
    state = StrategyState(site.folder, request.run).before(request.server_round)
    return make_client_half(site.study, model, control=control, state=state)


def outgoing_arrays(site: Site, model: nn.Module, half: ClientHalf) -> Arrays:
    """What of the trained model a reply holds."""
    arrays = half.outgoing()
    return {name: arrays[name] for name in exchanged_names(site.study, model)}


def _invalid(detail: str) -> RefusalError:
    return RefusalError(RefusalCode.INVALID_REQUEST, detail)
