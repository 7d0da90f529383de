"""Implement ``rig image``, ``rig up``, ``rig down`` and ``rig status``: a pair of virtual Linux nodes that stays
up between runs."""

from pathlib import Path
from typing import Any

import typer

from freezeframe.harness.bench.benchfile import Bench, load_bench
from freezeframe.harness.bench.opened import node_pair, virtual_config
from freezeframe.harness.cli.output import EXIT_PASS, EXIT_RIG, print_json, say
from freezeframe.harness.cli.privileges import prepare
from freezeframe.harness.core.text import escape
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.rigs import image
from freezeframe.harness.rigs.rig import VirtualRig, default_directory


def build_image(bench_name: str, *, as_json: bool) -> None:
    """Build the image of the nodes unless it exists."""
    pair = node_pair(_with_rig(bench_name))
    if not as_json and not image.is_built(pair):
        say("building the image of the nodes (only the first time)")
    built = image.ensure(pair)
    if as_json:
        print_json({"pair": pair.name, "image": built.description, "kernel": str(built.kernel)})
    else:
        say(f"image of the nodes: {built.description}")


def _with_rig(bench_name: str) -> Bench:
    bench = load_bench(bench_name)
    if bench.rig is None:
        raise UsageError(f"{bench.path}: has no [rig] table, so there is nothing to start")
    return bench


def up(bench_name: str, directory: Path | None, *, as_json: bool) -> None:
    bench = _with_rig(bench_name)
    assert bench.rig is not None
    prepare(bench)
    where = directory or default_directory()
    if not as_json and not image.is_built(node_pair(bench)):
        say("building the image of the nodes (only the first time)")
    rig = VirtualRig.start(virtual_config(bench, bench.rig, where, stays=True))
    rig.let_go()
    _report(rig, as_json=as_json)


def down(directory: Path | None, *, as_json: bool) -> None:
    where = directory or default_directory()
    was_up = VirtualRig(where).down()
    if as_json:
        print_json({"directory": str(where), "was_up": was_up})
    else:
        say(f"the rig in {where} is down" if was_up else f"no rig was up in {where}")


def status(directory: Path | None, *, as_json: bool) -> None:
    _report(VirtualRig(directory or default_directory()), as_json=as_json)


def _report(rig: VirtualRig, *, as_json: bool) -> None:
    """Print the state of the rig. Exit status 3 if it is not up, or only partly."""
    status: dict[str, Any] = {"directory": str(rig.directory), **rig.status()}
    try:
        rig.check()
        problem = ""
    except RigError as error:
        problem = str(error)
    if as_json:
        print_json({**status, "problem": problem})
    else:
        say(f"rig in {status['directory']}, process {status['pid']}: {status['image']}")
        for side, node in status["nodes"].items():
            say(
                f"  {side:<9} {'running, process ' + str(node['pid']) if node['running'] else 'NOT RUNNING'}"
            )
            for line in node["last_lines"][-1:]:
                say(f"            {escape(line)}")
        link = status["link"]
        say(f"  link      {link['frames']} frames, {link['dropped']} dropped")
        for line in link["fired"]:
            say(f"            {escape(line)}")
        if problem:
            say(escape(problem))
    raise typer.Exit(EXIT_RIG if problem else EXIT_PASS)
