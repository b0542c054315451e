"""The only place that checks a hospital's records for a study without a round; nothing is charged, nothing sent.

What it lists as a problem is what the hospital would refuse before round 1, found by the same code and with the same
refusal code. A warning refuses nothing: a person has to look.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fl_client.column_settings import TableColumnSettings
from fl_client.data.outcome_columns import outcome_numbers
from fl_client.data.records import SiteRecords
from fl_client.data_rules import held_out_refusals
from fl_client.data_summary import (
    CategorySummary,
    ChannelSummary,
    FeatureSummary,
    FoldSummary,
    ImageSummary,
    content_digests,
    summarise_categories,
    summarise_channels,
    summarise_features,
    summarise_fold,
    summarise_images,
)
from fl_client.guard import refusal_code
from fl_client.inputs import record_refusals
from fl_client.outcomes import outcome_rules
from fl_client.outcomes.survival import EVENTS
from fl_client.policy import check_room, policy_errors
from fl_client.refusals import gather
from fl_client.site import Site
from fl_client.source_settings import DicomSourceSettings, SeriesSourceSettings
from fl_client.statistics import check_statistics_allowed
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.schema import ImageSchema, SeriesSchema, TableSchema
from privacy.errors import PrivacySettingError

SiteError = RefusalError | PrivacySettingError

ADMISSION_CODES = {
    code.label for code in (RefusalCode.POLICY, RefusalCode.PRIVACY_SETTING, RefusalCode.BUDGET_EXHAUSTED)
}

DECLARED_DIFFERENCE = 0.2
"""Share of the training records by which the declared number may differ from theirs without a warning."""

SUSPECT_INSIDE = 0.2
"""Share of the records that may hold one plausible value of a feature that is measured."""

SUSPECT_OUTSIDE = 0.05
"""Share of the records that may hold one implausible value."""

MANY_OUTSIDE = 0.2
"""Share of the records that may lie outside the range before the unit is doubted."""

FOLD_NAMES = ("training", "held-out")

MOST_CATEGORIES = 10
"""A feature of more distinct values is one that is measured."""

NEVER_CHANGES = "the same value in every record that has one; nothing can be learned from it here"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that has to be put right before the hospital can take part.

    Attributes:
        code: With which the hospital would refuse.
        detail: What is wrong, and the rule; for the hospital only.
    """

    code: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a check found; counts of patients, which no epsilon covers: it stays inside the hospital.

    Attributes:
        site: The hospital's name.
        study: The study's name.
        label: The label's name.
        counted_by: What records of a fold are counted by.
        group: What one of these is.
        train: The training records; None if they could not be read.
        test: The held-out records; None likewise.
        features: Numbers of a table.
        categories: Of a table.
        channels: Of time series.
        images: None for all but images.
        problems: All that has to be put right.
        warnings: What a person should look at.
        run_settings: Of the study, that the hospital's policy lets a run set.
    """

    site: str
    study: str
    label: str
    counted_by: str = ""
    group: str = ""
    train: FoldSummary | None = None
    test: FoldSummary | None = None
    features: tuple[FeatureSummary, ...] = ()
    categories: tuple[CategorySummary, ...] = ()
    channels: tuple[ChannelSummary, ...] = ()
    images: ImageSummary | None = None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    run_settings: tuple[str, ...] = ()

    @property
    def is_admitted(self) -> bool:
        """Whether the hospital's policy and budget admit the study, whatever the records are."""
        return not {problem.code for problem in self.problems} & ADMISSION_CODES

    @property
    def is_ok(self) -> bool:
        """Whether the hospital could take part."""
        return not self.problems


def check_site(site: Site) -> CheckReport:
    """Read a hospital's records and hold them, and its policy, against a study."""
    study, settings = site.study, site.settings
    errors = list(policy_errors(settings, study))
    refusals: list[RefusalError] = []
    if study.is_private or settings.policy.measurements == "noised":
        with gather(refusals):
            check_room(settings)
    with gather(refusals):
        check_statistics_allowed(site)
    records = None
    with gather(refusals):
        records = site.load_records()
    if records is None:
        return CheckReport(
            site=site.name,
            study=study.name,
            label=study.data_schema.label,
            problems=_problems([*errors, *refusals]),
            warnings=tuple(_mapping_warnings(site)),
        )
    return _report(site, records, [*errors, *refusals, *record_refusals(site, records)])


def _report(site: Site, records: SiteRecords, errors: list[SiteError]) -> CheckReport:
    schema = site.study.data_schema
    folds = (records.train, records.test)
    digests = [content_digests(fold) for fold in folds]
    train, test = (
        summarise_fold(fold, schema, name, num_different=len(different))
        for fold, name, different in zip(folds, FOLD_NAMES, digests, strict=True)
    )
    features = summarise_features(schema, folds) if isinstance(schema, TableSchema) else ()
    categories = summarise_categories(schema, folds) if isinstance(schema, TableSchema) else ()
    channels = summarise_channels(schema, folds) if isinstance(schema, SeriesSchema) else ()
    images = summarise_images(schema, folds) if isinstance(schema, ImageSchema) else None
    total = train.records + test.records
    warnings = [
        *_mapping_warnings(site),
        *records.notes,
        *_header_warnings(site),
        *_fold_warnings(site, train, test),
        *_repeat_warnings(len(digests[0] & digests[1])),
        *(_target_warnings(train, test) if schema.task == "regression" else ()),
        *(warning for feature in features for warning in _feature_warnings(feature, total)),
        *(warning for category in categories for warning in _category_warnings(category)),
        *(warning for channel in channels for warning in _channel_warnings(channel)),
        *(_image_warnings(images) if images is not None else ()),
    ]
    return CheckReport(
        site=site.name,
        study=site.study.name,
        label=schema.label,
        counted_by=outcome_rules(schema).title,
        group=outcome_rules(schema).GROUP,
        train=train,
        test=test,
        features=features,
        categories=categories,
        channels=channels,
        images=images,
        problems=_problems(errors),
        warnings=tuple(warnings),
        run_settings=site.settings.policy.run_settings,
    )


def _problems(errors: list[SiteError]) -> tuple[Problem, ...]:
    return tuple(
        Problem(code=refusal_code(error).label, detail=line)
        for error in errors
        for line in (error.detail if isinstance(error, RefusalError) else str(error)).split("\n")
    )


def _mapping_warnings(site: Site) -> Iterator[str]:
    source, schema = site.settings.source, site.study.data_schema
    if isinstance(source, SeriesSourceSettings) and isinstance(schema, SeriesSchema):
        for name in sorted(source.channels.keys() - {channel.name for channel in schema.channels}):
            yield f"source.channels.{name!r} is no channel of this study; it changes nothing here"
    if not isinstance(source, TableColumnSettings) or not isinstance(schema, TableSchema):
        return
    known_names = {feature.name for feature in schema.features} | set(outcome_numbers(schema))
    for name in sorted(source.columns.keys() - known_names):
        yield f"source.columns.{name!r} is no feature of this study; it changes nothing here"
    known = list(EVENTS if schema.task == "survival" else schema.classes)
    for name in sorted(set(source.labels.values()) - set(known)):
        yield f"source.labels gives {name!r}, which is no class of this study; expected {known}"


def _header_warnings(site: Site) -> Iterator[str]:
    """DICOM headers that still identify somebody: training takes the pixels alone, but the files are there.

    What reads them is imported here, since it takes long and no other source needs it.
    """
    source = site.settings.source
    if not isinstance(source, DicomSourceSettings):
        return
    from fl_client.data.dicom import count_identifying_headers
    from fl_client.data.image_index import read_image_index

    folds = read_image_index(
        source.index, site_folder=site.folder, image_folder=site.folder / source.folder, frame=source.frame
    )
    paths = {entry.path for entry in (*folds.train, *folds.test)}
    for name, count in sorted(count_identifying_headers(sorted(paths)).items()):
        yield (
            f"DICOM header {name} holds something in {count} of {len(paths)} files; no header is trained on or sent, "
            "but pseudonymise the files if nobody needs to know whose they are"
        )


def _fold_warnings(site: Site, train: FoldSummary, test: FoldSummary) -> Iterator[str]:
    policy, declared = site.settings.policy, site.settings.declared_examples
    if abs(declared - train.records) > DECLARED_DIFFERENCE * train.records:
        yield (
            f"declared-examples={declared}; {train.records} training records are more than "
            f"{DECLARED_DIFFERENCE:.0%} away; the noise and the hospital's weight follow the declared number"
        )
    if site.study.is_private and train.alike:
        yield f"{train.alike}; a private study trains on them all the same, since a refusal would say so"
    if policy.measurements == "none":
        return
    for refusal in held_out_refusals(test.records, min_examples=policy.min_examples):
        yield f"{refusal.detail}; the hospital trains and measures nothing"
    if test.alike and (measure := outcome_rules(site.study.data_schema).MEASURE):
        yield f"{test.alike}; this hospital alone has no {measure}"


def _target_warnings(*folds: FoldSummary) -> Iterator[str]:
    below, inside, above = (sum(counts) for counts in zip(*(fold.classes.values() for fold in folds), strict=True))
    if below + above > MANY_OUTSIDE * (below + inside + above):
        yield (
            f"the target: {below + above} of {below + inside + above} records are outside its range; look at the unit "
            "(factor, offset)"
        )


def _repeat_warnings(num_in_both: int) -> Iterator[str]:
    if num_in_both:
        yield (
            f"{num_in_both} different records are in training and held-out records alike; if they are copies, what is "
            "measured is too good"
        )


def _feature_warnings(feature: FeatureSummary, total: int) -> Iterator[str]:
    if total == 0:
        return
    name, outside = f"feature {feature.name!r}", feature.below + feature.above
    allowed = f"[{feature.minimum:g}, {feature.maximum:g}]{f' {feature.unit}' if feature.unit else ''}"
    alike, share = feature.most_alike_outside, feature.most_alike_outside / total
    is_code = alike > 2 and share > SUSPECT_OUTSIDE
    if is_code:
        yield (
            f"{name}: one value outside {allowed} stands in {alike} of {total} records ({share:.0%}); "
            "if it means 'not measured', name it under missing in site.toml"
        )
    if outside - (alike if is_code else 0) > MANY_OUTSIDE * total:
        yield f"{name}: {outside} of {total} records are outside {allowed}; look at the unit (factor, offset)"
    if feature.distinct == 1 and not is_code:
        yield f"{name}: {NEVER_CHANGES}"
    if feature.distinct > MOST_CATEGORIES and feature.most_alike_inside > SUSPECT_INSIDE * total:
        yield (
            f"{name}: one value stands in {feature.most_alike_inside} of {total} records "
            f"({feature.most_alike_inside / total:.0%}); if it means 'not measured', name it under missing in site.toml"
        )


def _category_warnings(feature: CategorySummary) -> Iterator[str]:
    if sum(count > 0 for count in feature.counts.values()) == 1:
        yield f"feature {feature.name!r}: {NEVER_CHANGES}"


def _channel_warnings(channel: ChannelSummary) -> Iterator[str]:
    measured = channel.steps - channel.missing
    name, outside = f"channel {channel.name!r}", channel.below + channel.above
    if channel.steps and not measured:
        yield f"{name}: never measured; look at its name in the file (source.channels.{channel.name!r}.name)"
    if outside > MANY_OUTSIDE * measured:
        allowed = f"[{channel.minimum:g}, {channel.maximum:g}]{f' {channel.unit}' if channel.unit else ''}"
        yield (
            f"{name}: {outside} of {measured} measured steps are outside {allowed}; look at the unit (factor, offset)"
        )


def _image_warnings(images: ImageSummary) -> Iterator[str]:
    if images.blank:
        yield f"{images.blank} images are of one colour throughout; look at how they were exported"
    if images.pixels and images.is_dark:
        yield (
            f"no pixel is above a twentieth of the study's range [{images.minimum:g}, {images.maximum:g}]; look at how "
            "pixels are scaled"
        )
