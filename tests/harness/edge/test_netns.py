"""Network namespaces: anonymous, joined by a wire, gone with their process; what is missing is
told."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.harness.edge import netns
from freezeframe.harness.errors import RigError

ROOT = Path(__file__).resolve().parents[3]
needs_namespaces = pytest.mark.skipif(
    bool(netns.missing_capabilities()),
    reason="needs root: CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW",
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another user")


def interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


@needs_namespaces
def test_a_pair_carries_tcp_and_leaves_the_host_alone() -> None:
    before = interfaces()
    pair = netns.make_pair(mtu_bytes=9000)
    try:
        assert interfaces() == before
        assert pair.notes == ()
        assert (
            pair.primary.run(interfaces)
            == {"lo", netns.INTERFACE}
            == pair.secondary.run(interfaces)
        )
        listener = pair.secondary.run(lambda: socket.create_server((netns.SECONDARY_ADDRESS, 7788)))
        client = pair.primary.run(
            lambda: socket.create_connection((netns.SECONDARY_ADDRESS, 7788), timeout=200)
        )
        with listener, client:
            served, (address, _) = listener.accept()
            with served:
                client.sendall(b"x" * 100_000)
                served.settimeout(60)
                # MSG_WAITALL does not wait for all where there is a timeout.
                with served.makefile("rb") as arriving:
                    assert len(arriving.read(100_000)) == 100_000
        assert address == netns.PRIMARY_ADDRESS
    finally:
        pair.close()


@needs_namespaces
def test_frames_are_seen_as_on_a_wire() -> None:
    """No frame above the MTU, each with the TCP checksum that the wire would carry."""
    pair = netns.make_pair()
    tap = pair.secondary.run(
        lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    )
    pair.secondary.run(lambda: tap.bind((netns.INTERFACE, 0)))
    listener = pair.secondary.run(lambda: socket.create_server((netns.SECONDARY_ADDRESS, 7788)))
    client = pair.primary.run(
        lambda: socket.create_connection((netns.SECONDARY_ADDRESS, 7788), timeout=200)
    )
    with tap, listener, client:
        client.sendall(bytes(range(256)) * 200)
        served, _ = listener.accept()
        with served:
            served.settimeout(60)
            with served.makefile("rb") as arriving:
                assert len(arriving.read(256 * 200)) == 256 * 200
        tap.settimeout(0.2)
        data_frames = 0
        try:
            while True:
                frame = tap.recv(70_000)
                assert len(frame) <= 1514
                assert frame[12:14] in (b"\x08\x00", b"\x08\x06")
                if frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_TCP:
                    assert tcp_checksum_residue(frame) == 0xFFFF
                    data_frames += len(frame) > 1000
        except TimeoutError:
            pass
    pair.close()
    assert data_frames >= 256 * 200 // 1460


def tcp_checksum_residue(frame: bytes) -> int:
    packet = frame[14 : 14 + int.from_bytes(frame[16:18], "big")]
    segment = packet[(packet[0] & 15) * 4 :]
    summed = (
        packet[12:20]
        + bytes([0, 6])
        + len(segment).to_bytes(2, "big")
        + segment
        + bytes(len(segment) % 2)
    )
    total = sum(int.from_bytes(summed[at : at + 2], "big") for at in range(0, len(summed), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@needs_namespaces
def test_the_caller_stays_where_it_is() -> None:
    pair = netns.make_pair()
    before = interfaces()
    assert pair.primary.run(interfaces) == {"lo", netns.INTERFACE}
    with pytest.raises(ZeroDivisionError):
        pair.primary.run(lambda: 1 // 0)
    assert interfaces() == before
    pair.close()
    pair.close()


@needs_namespaces
def test_another_process_enters_by_path_and_nothing_outlives_the_holder() -> None:
    pair = netns.make_pair()
    script = (
        "import socket, sys\nfrom freezeframe.harness.edge import netns\n"
        "print(sorted(netns.Namespace.open(sys.argv[1]).run(lambda: [x for _, x in socket.if_nameindex()])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, pair.secondary.path],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=200,
    )
    assert done.stdout.strip() == "['lo', 'repl0']", done.stderr
    path = pair.secondary.path
    pair.close()
    with pytest.raises(RigError, match=r"network namespace /proc/\d+/fd/\d+: No such file"):
        netns.Namespace.open(path)


def test_what_is_no_namespace_cannot_be_entered(tmp_path: Path) -> None:
    plain = tmp_path / "file"
    plain.touch()
    with pytest.raises(RigError, match="cannot enter a network namespace: Invalid argument"):
        netns.Namespace.open(plain).run(interfaces)


# --- privileges ---------------------------------------------------------------------------------------------
PRIVILEGED = (
    "import sys; sys.path.insert(0, {root!r})\n"
    "from freezeframe.harness.edge import netns\nfrom freezeframe.harness.errors import RigError\n"
    "try:\n"
    "    netns.ensure_privileges([sys.executable, '-c', sys.argv[1], sys.argv[1]])\n"
    "    pair = netns.make_pair(); print('made', pair.notes, netns.missing_capabilities())\n"
    "    import socket; print(pair.secondary.run(lambda: len(socket.if_nameindex())))\n"
    "except RigError as error: print('refused:', error)\n"
)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that any user can enter. pytest's own is made private again by each session that
    starts on this machine."""
    with tempfile.TemporaryDirectory(prefix="freezeframe-netns-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def world_python(tmp_path: Path) -> tuple[str, dict[str, str], str]:
    """An interpreter, its environment and the script, all of which any user can read."""
    copy = tmp_path / "project"
    shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    base = Path(os.path.realpath(sys.executable))
    tag = f"python{sys.version_info.major}.{sys.version_info.minor}"
    readable = all(part.stat().st_mode & 1 for part in base.parents)
    python = str(base) if readable else shutil.which(tag, path="/usr/bin:/usr/local/bin")
    assert python, f"no {tag} that another user may run"
    site = [entry for entry in sys.path if entry.endswith("-packages")]
    return (
        python,
        {"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(site)},
        PRIVILEGED.format(root=str(copy)),
    )


def run_script(prefix: list[str], tmp_path: Path, **extra: str) -> str:
    python, environment, script = world_python(tmp_path)
    done = subprocess.run(
        [*prefix, python, "-c", script, script],
        capture_output=True, text=True, env={**environment, **extra}, cwd="/", timeout=200,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.strip() or done.stderr


NOBODY = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--bounding-set=-all",
    "--inh-caps=-all",
]


@needs_root
def test_another_user_gets_a_user_namespace(tmp_path: Path) -> None:
    assert run_script(NOBODY, tmp_path) == "made () []\n2"


HOLDER = (
    "netns.ensure_privileges([sys.executable, '-c', sys.argv[1], sys.argv[1]])\n"
    "pair = netns.make_pair(); print(pair.secondary.path, flush=True); sys.stdin.read()\n"
)
VISITOR = (
    "import socket\n"
    "print(netns.missing_capabilities()) if netns.REEXEC_MARKER in os.environ else None\n"
    "netns.join_holder({path!r}, [sys.executable, '-c', sys.argv[1], sys.argv[1]])\n"
    "print(netns.Namespace.open({path!r}).run(lambda: [name for _, name in socket.if_nameindex()]))\n"
)


@needs_root
def test_a_second_command_of_another_user_joins_the_bench_of_the_first(tmp_path: Path) -> None:
    python, environment, whole = world_python(tmp_path)
    head = "import os\n" + whole.split("try:")[0]

    def start(script: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*NOBODY, python, "-c", script, script], env=environment, cwd="/", text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    with start(head + HOLDER) as holder:
        try:
            assert holder.stdout is not None
            path = holder.stdout.readline().strip()
            link = tmp_path / "secondary.netns"
            link.symlink_to(path)
            with start(head + VISITOR.format(path=str(link))) as visitor:
                assert visitor.communicate(timeout=200)[0] == "[]\n['lo', 'repl0']\n"
        finally:
            holder.kill()


@needs_root
def test_without_user_namespaces_the_setting_is_named(tmp_path: Path) -> None:
    limit = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    prefix = [
        "unshare",
        "--user",
        "--map-root-user",
        "sh",
        "-c",
        limit,
        "sh",
        "setpriv",
        "--bounding-set=-all",
    ]
    told = run_script(prefix, tmp_path)
    assert told.startswith(
        "refused: cannot make a simulated bench's network namespaces: CAP_NET_ADMIN, "
    )
    assert "user.max_user_namespaces = 0; `sudo sysctl -w user.max_user_namespaces=10000`" in told


@needs_root
def test_a_user_namespace_without_capabilities_is_not_tried_twice(tmp_path: Path) -> None:
    told = run_script(NOBODY, tmp_path, **{netns.REEXEC_MARKER: "1"})
    assert told.endswith("missing, and the user namespace gave no capabilities")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"kernel.unprivileged_userns_clone": 0}, "sysctl -w kernel.unprivileged_userns_clone=1"),
        (
            {"kernel.apparmor_restrict_unprivileged_userns": 1},
            "kernel.apparmor_restrict_unprivileged_userns = 1",
        ),
        ({"user.max_net_namespaces": 0}, "user.max_net_namespaces = 0"),
        ({"user.max_user_namespaces": 5}, "run as root or give CAP_SYS_ADMIN"),
    ],
)
def test_every_forbidding_setting_is_named(settings: dict[str, int], named: str) -> None:
    told = netns.explain_refusal("unshare failed: Operation not permitted", settings)
    assert named in told and "Operation not permitted" in told
