"""The only place that makes a source from a hospital's settings."""

from pathlib import Path

from fl_client.data.outcome_columns import outcome_numbers, place_outcome
from fl_client.data.records import Source
from fl_client.source_settings import (
    AnySourceSettings,
    ImageFileSourceSettings,
    ImageSourceSettings,
    MedMnistSourceSettings,
    PublicHospitalsSourceSettings,
    SeriesSourceSettings,
    SourceSettings,
    SqlSourceSettings,
    TableSourceSettings,
)
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.schema import ImageSchema, Schema, SeriesSchema, TableSchema, TripleSchema


def open_source(settings: AnySourceSettings, folder: Path, schema: Schema) -> Source:
    """The source of a kind. Its module is imported only here: each brings libraries that take seconds to import.

    Args:
        settings: From ``site.toml``.
        folder: That of ``site.toml``.
        schema: Of the study.

    Raises:
        RefusalError: INVALID_DATA: a source of this kind does not hold what the study needs.
    """
    if isinstance(settings, SourceSettings):
        from fl_client.data.builtin import BuiltInSource

        return BuiltInSource(settings)
    if isinstance(settings, PublicHospitalsSourceSettings):
        from fl_client.data.public_hospitals import PublicHospitalsSource

        return PublicHospitalsSource(settings, folder=folder)
    if isinstance(settings, ImageSourceSettings) and isinstance(schema, ImageSchema):
        return _image_source(settings, folder, schema)
    if isinstance(settings, SeriesSourceSettings) and isinstance(schema, SeriesSchema):
        from fl_client.data.series import SeriesSource

        return SeriesSource(settings, folder=folder, schema=schema)
    if isinstance(settings, TableSourceSettings | SqlSourceSettings) and isinstance(schema, TableSchema | TripleSchema):
        return _table_source(settings, folder, schema)
    raise RefusalError(
        RefusalCode.INVALID_DATA, f"source.kind={settings.kind!r}; the study needs schema.kind={schema.kind!r}"
    )


def _image_source(settings: ImageSourceSettings, folder: Path, schema: ImageSchema) -> Source:
    if isinstance(settings, ImageFileSourceSettings):
        from fl_client.data.image_folder import ImageFolderSource

        return ImageFolderSource(settings, folder=folder, schema=schema)
    if isinstance(settings, MedMnistSourceSettings):
        from fl_client.data.medmnist import MedMnistSource

        return MedMnistSource(settings, folder=folder, findings=outcome_numbers(schema))
    from fl_client.data.mnist import MnistSource

    return MnistSource(settings, folder=folder)


def _table_source(
    settings: TableSourceSettings | SqlSourceSettings, folder: Path, schema: TableSchema | TripleSchema
) -> Source:
    features, numbers = schema.features, outcome_numbers(schema)
    if isinstance(settings, SqlSourceSettings):
        from fl_client.data.sql import SqlSource

        return SqlSource(place_outcome(settings, schema), folder=folder, features=features, numbers=numbers)
    from fl_client.data.table_file import TableFileSource

    return TableFileSource(place_outcome(settings, schema), folder=folder, features=features, numbers=numbers)
