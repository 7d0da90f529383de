"""The options of ``freezeframe import``, declared for ``harness.cli.app``."""

from pathlib import Path
from typing import Annotated

import typer

MoreLinks = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Further captures of the same link.", metavar="[FILE]...", show_default=False
    ),
]
Links = Annotated[
    list[Path] | None,
    typer.Option(
        "--link",
        help="A capture of the link: pcap or pcapng, also .gz or .zst. Several are taps of one link.",
        metavar="FILE",
    ),
]
PrimaryConsole = Annotated[
    Path | None,
    typer.Option("--primary-console", help="The primary's console or kernel log.", metavar="FILE"),
]
SecondaryConsole = Annotated[
    Path | None,
    typer.Option(
        "--secondary-console", help="The secondary's console or kernel log.", metavar="FILE"
    ),
]
Ports = Annotated[
    list[int] | None,
    typer.Option(
        "--port",
        help="TCP port of the replication, also several times; the protocol's own by default.",
        metavar="N",
    ),
]
PrimaryAddress = Annotated[
    str,
    typer.Option(
        "--primary-address",
        help="The primary's address on the link; by default, whoever sends writes is the primary.",
        metavar="A",
    ),
]
SecondaryAddress = Annotated[
    str,
    typer.Option("--secondary-address", help="The secondary's address.", metavar="B"),
]
Protocol = Annotated[
    str, typer.Option("--protocol", help="Replication protocol on the link.", metavar="NAME")
]
Rules = Annotated[
    list[Path] | None,
    typer.Option(
        "--rules", help="Rule file instead of the usual ones, also several times.", metavar="FILE"
    ),
]
