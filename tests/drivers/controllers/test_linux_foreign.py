"""Linux nodes that somebody else built, brought on a bench by a bench file alone: whatever their shells
prompt, wherever they keep what is their own."""

import os
from pathlib import Path

import pytest
from linux_node import INCIDENT, NodeOnDisk, armed, shell_on_a_terminal, soon

from freezeframe.drivers.controllers.linux_drbd import LinuxDrbd, LinuxDrbdBreak
from freezeframe.drivers.controllers.linux_node import LinuxNode
from freezeframe.harness.bench import checks
from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.errors import UsageError, WrongDeviceError

PROMPTS = {
    "no sign at its end": ("node-a: ", "... "),
    "a sign of another kind": ("root@a \u276f ", "\u2026 "),
    "coloured, with a title": ("\\e]0;a\\a\\[\\e[1;31m\\]a:\\w\\[\\e[0m\\] ", "\\e[2m>\\e[0m "),
    "two lines": ("\\n[root@a]\\n: ", "  "),
    "none": ("", ""),
}
BENCH = """
[bench]
name = "foreign"
[primary]
driver = "linux_drbd"
serial_number = "rack-7.a"
control = "exec:env PS1=node-a: bash --norc -i"
options = {{ identity_file = "{root}/etc/asset" }}
[secondary]
driver = "linux_drbd"
serial_number = "rack-7.b"
{console}
[link]
interface = "lo"
[policy]
rules = ["rules.toml"]
"""
RULES = """
[[rule]]
name = "digest-failed"
source = "console"
literal = "Digest integrity check FAILED"
"""


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("editing", ["--noediting", "--norc"])
def test_a_shell_may_prompt_as_it_likes(
    prompts: str, editing: str, node: NodeOnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without a line editor: identified, prepared, saved, and its set pulled whole."""
    first, next_line = PROMPTS[prompts]
    shell, link = shell_on_a_terminal(
        ["bash", "--norc", editing, "-i"], node.root, PS1=first, PS2=next_line, TERM="xterm"
    )
    try:
        device = LinuxDrbd("primary", link, serial_number="FFTEST-1")
        frame = armed(device, 3, disruptive=False)
        assert device.rehearse(frame, soon()).ok
        device.link.write(frame)
        reply = device.freeze_reply(frame, soon())
        assert reply is not None and reply.ok
        (entry,) = device.sets(soon())
        assert entry.incident_id == INCIDENT and entry.complete
        arrived = bytearray()
        assert device.pull(entry, b"", soon(), arrived.extend).events is not None
        assert len(arrived) == entry.stored_bytes
    finally:
        os.killpg(shell.pid, 9)
        shell.wait()
        link.close()


def test_a_file_may_say_who_it_is(device: LinuxDrbd, node: NodeOnDisk) -> None:
    """A maker's sentence in DMI is the same on each board: another file is named, and the armed line
    acts on that node alone."""
    node.put("sys/class/dmi/id/product_serial", "To be filled by O.E.M.\n")
    with pytest.raises(WrongDeviceError, match=r'identity_file = "/etc/machine-id" in the options'):
        device.identify(soon())
    node.put("etc/asset", "rack-7.a\nanother line\n")
    options = LinuxNode.Options(identity_file=f"{node.root}/etc/asset")
    named = LinuxDrbd("primary", device.link, serial_number="rack-7.a", options=options)
    frame = armed(named, 1)
    node.put("etc/asset", "rack-7.b\n")
    named.link.write(frame)
    reply = named.freeze_reply(frame, soon())
    assert reply is not None and reply.status == "wrong target"
    assert not (node.root / "crashed").exists()
    node.put("etc/asset", "rack-7.a\n")
    named.link.write(frame)
    reply = named.freeze_reply(frame, soon())
    assert reply is not None and reply.ok
    named.identify(soon())
    assert (node.root / "crashed").read_text() == "yes\n"


@pytest.mark.parametrize("path", ["etc/asset", "/etc/$(reboot)", "/etc/a b", "/etc/a;b", "/"])
def test_a_path_that_could_be_a_command_is_refused(path: str, device: LinuxDrbd) -> None:
    options = LinuxNode.Options(identity_file=path)
    for made in (LinuxDrbd, LinuxDrbdBreak):
        with pytest.raises(UsageError, match=r"identity_file .*: allowed is an absolute path"):
            made("primary", device.link, serial_number="A", options=options)


@pytest.mark.parametrize("console", ["", 'console = "exec:sleep 1000"'])
def test_a_bench_file_alone_opens_nodes_without_a_host_port(
    console: str, node: NodeOnDisk, tmp_path: Path
) -> None:
    """Nobody can write here: such a bench is watched. `check` has no complaint."""
    node.put("etc/asset", "rack-7.a\n")
    (tmp_path / "rules.toml").write_text(RULES)
    path = tmp_path / "foreign.toml"
    path.write_text(BENCH.format(root=node.root, console=console))
    found = checks.check(path)
    assert [one for one in found if one.status == "problem"] == []
    assert any("it can be watched only" in one.detail for one in found)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with OpenBench(load_bench(path), run_dir) as opened:
        assert opened.await_full_duplex(deadline_in(60)).keys() == {"primary"}
        assert opened.identities["primary"].serial_number == "rack-7.a"
        with pytest.raises(UsageError, match="the secondary cannot be asked"):
            opened.identify("secondary", deadline_in(1))
