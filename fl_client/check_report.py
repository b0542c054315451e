"""The only place that puts a check of the records into words: tables and a verdict for a person, JSON for a program."""

import json
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fl_client.data_check import CheckReport
from fl_client.data_summary import CategorySummary, ChannelSummary, FeatureSummary, FoldSummary, ImageSummary


def print_check(report: CheckReport, console: Console) -> None:
    """Show what was read, what a person should look at, and what has to be put right."""
    console.print(f"[bold]{report.site}[/] for [bold]{report.study}[/]: read, not trained; nothing charged or sent")
    if report.train is not None and report.test is not None:
        folds = {"training": report.train, "held out": report.test}
        console.print(_fold_table(folds), _class_table(report.counted_by, report.group, folds))
    if report.features:
        console.print(_feature_table(report.features))
    if report.categories:
        console.print(_category_table(report.categories))
    if report.channels:
        console.print(_channel_table(report.channels))
    if report.images is not None:
        console.print(_image_table(report.images))
    console.print()
    if report.is_admitted:
        console.print("The hospital's policy admits the study.")
        names = ", ".join(report.run_settings) or "none"
        console.print(f"Settings of the study that a run may change (policy.run-settings): {names}.")
    if report.train is not None:
        console.print("No record is dropped. A value outside its range is taken as the nearest bound.")
    if report.warnings:
        console.print("\n[yellow]To look at[/]")
        _print_list(console, [escape(warning) for warning in report.warnings], bullets=["·"] * len(report.warnings))
    if report.is_ok:
        console.print("\n[green]OK[/]")
        return
    console.print("\n[red]To put right[/]")
    lines = [f"{escape(problem.detail)} [dim]({problem.code})[/]" for problem in report.problems]
    _print_list(console, lines, bullets=[f"{number}." for number in range(1, len(lines) + 1)])


def to_json(report: CheckReport) -> str:
    """The whole report, with its verdict as ``ok``."""
    return json.dumps({"ok": report.is_ok} | asdict(report), indent=2, allow_nan=False)


def _fold_table(folds: dict[str, FoldSummary]) -> Table:
    table = _table("\nRecords", "", numbers=("records", "patients", "with several records", "repeated records"))
    for name, fold in folds.items():
        table.add_row(
            name,
            str(fold.records),
            _count(fold.patients),
            _count(fold.patients_with_several),
            str(fold.repeated_records),
        )
    return table


def _class_table(counted_by: str, group: str, folds: dict[str, FoldSummary]) -> Table:
    table = _table(f"\n{escape(counted_by)}", group, numbers=tuple(folds))
    first, *_ = folds.values()
    for name in first.classes:
        table.add_row(escape(name), *(_with_share(fold.classes[name], fold.records) for fold in folds.values()))
    if any(fold.unknown_labels for fold in folds.values()):
        unknown = (_with_share(fold.unknown_labels, fold.records) for fold in folds.values())
        table.add_row("[red]none of these[/]", *unknown)
    return table


def _feature_table(features: tuple[FeatureSummary, ...]) -> Table:
    has_infinite = any(each.infinite for each in features)
    counts = ("missing", *(["infinite"] if has_infinite else []), "below", "above")
    table = _table("\nFeatures over all records", "feature", "range of the study", numbers=counts)
    for each in features:
        table.add_row(
            escape(each.name),
            escape(f"{each.minimum:g} to {each.maximum:g} {each.unit}"),
            _marked(each.missing, "red"),
            *([_marked(each.infinite, "red")] if has_infinite else []),
            _marked(each.below, "yellow"),
            _marked(each.above, "yellow"),
        )
    return table


def _category_table(features: tuple[CategorySummary, ...]) -> Table:
    table = _table("\nCategories over all records", "feature", "category", numbers=("records",))
    for feature in features:
        total = sum(feature.counts.values()) + feature.missing + feature.unknown
        name = escape(feature.name)
        for category, count in feature.counts.items():
            table.add_row(name, escape(category), _with_share(count, total))
            name = ""
        if feature.missing:
            table.add_row(name, "[red]missing[/]", _with_share(feature.missing, total))
        if feature.unknown:
            table.add_row(name, "[red]none of these[/]", _with_share(feature.unknown, total))
    return table


def _channel_table(channels: tuple[ChannelSummary, ...]) -> Table:
    counts = ("steps", "missing", "below", "above", "windows without any")
    table = _table("\nChannels over all windows", "channel", "range of the study", numbers=counts)
    for each in channels:
        table.add_row(
            escape(each.name),
            escape(f"{each.minimum:g} to {each.maximum:g} {each.unit}"),
            str(each.steps),
            *(_marked(count, "yellow") for count in (each.missing, each.below, each.above, each.unmeasured_windows)),
        )
    return table


def _image_table(images: ImageSummary) -> Table:
    title = "\nImages over all records"
    table = _table(title, images.axes, "expected", numbers=("range", "no number", "below", "above", "blank"))
    table.add_row(
        " and ".join(_shape(shape) for shape in images.shapes) or "–",
        _shape(images.expected),
        f"{images.minimum:g} to {images.maximum:g}",
        _marked(images.not_finite, "red"),
        *(_marked(count, "yellow") for count in (images.below, images.above, images.blank)),
    )
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _print_list(console: Console, lines: list[str], *, bullets: list[str]) -> None:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for bullet, line in zip(bullets, lines, strict=True):
        grid.add_row(bullet, line)
    console.print(grid)


def _count(count: int | None) -> str:
    return "not said" if count is None else str(count)


def _with_share(count: int, total: int) -> str:
    return f"{count} ({count / total:.0%})" if total else "0"


def _marked(count: int, colour: str) -> str:
    return f"[{colour}]{count}[/]" if count else "0"


def _table(title: str, *texts: str, numbers: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", pad_edge=False)
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table
