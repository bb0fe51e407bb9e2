"""How `sekd evaluate` shows its figures: tables on stdout."""

import json

import click

from sekd_cli.evaluation.tables import Table, plain

UNBOUNDED = 10_000  # columns


def show(tables: list[Table], output: str | None) -> None:
    """Print tables as `json`, `csv` (the last one alone), `markdown`, or drawn for a terminal."""
    if output == "json":
        settings = {name: _setting(value) for name, value in click.get_current_context().params.items()}
        content = {"settings": settings, **{table.title.lower().replace(" ", "_"): table.rows for table in tables}}
        click.echo(json.dumps(plain(content), indent=1, allow_nan=False))
    elif output == "csv":
        click.echo(tables[-1].csv(), nl=False)
    elif output == "markdown":
        click.echo("\n".join(table.markdown() for table in tables), nl=False)
    else:
        for table in tables:
            _draw(table)


def _setting(value: object) -> object:
    """An option's value as JSON has it."""
    if isinstance(value, tuple):
        return [_setting(item) for item in value]
    return value if isinstance(value, int | float | str | None) else str(value)


def _draw(table: Table) -> None:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table as Drawn  # noqa: PLC0415

    drawn = Drawn(box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(table.columns):
        drawn.add_column(column.header, justify="right" if index else "left", no_wrap=not index)
    for cells in table.cells():
        drawn.add_row(*map(escape, cells))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = UNBOUNDED  # a file has no right edge to wrap at
    console.print(drawn)
