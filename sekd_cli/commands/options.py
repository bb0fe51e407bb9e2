"""Options that `sekd extract` and `sekd match` share."""

import click

layout = click.option(
    "--layout",
    type=click.Choice(("hloc", "imc", "kaggle")),
    default="hloc",
    show_default=True,
    help="imc, kaggle: when all is done, write a folder of that name beside the output too.",
)
overwrite = click.option("--overwrite", is_flag=True, help="Start afresh; without it, go on where the file ends.")
shard = click.option("--shard", metavar="I/N", help="Do the I-th of N parts, counted from 1.")
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
