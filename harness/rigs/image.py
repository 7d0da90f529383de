"""Build the image of a virtual node once: an uncompressed kernel and an initrd, from Debian
packages only.

Images are stored in the cache directory of the user, in a folder named by everything they depend
on: versions of the packages, files of the guest, and this recipe. Nothing is installed on the host
and nothing is compiled: packages are downloaded and unpacked, and some of their files are copied
into the initrd.
"""

import fcntl
import hashlib
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec
import platformdirs

from freezeframe.harness.core.nodepair import NodePair
from freezeframe.harness.errors import RigError
from freezeframe.harness.rigs.packages import Archive

RECIPE: Final = "2"
"""Version of this recipe, so that older images are not used for its product."""
KERNEL_META: Final = "linux-image-cloud-amd64"
"""Kernel package. The cloud kernel is small and has DRBD, NVMe/TCP, NBD, md, virtio, ramoops and
SysRq on serial lines."""
PACKAGES: Final = (
    "busybox-static", "nbdkit", "libc6", "libgnutls30", "libselinux1", "libp11-kit0", "libidn2-0",
    "libunistring2", "libtasn1-6", "libnettle8", "libhogweed6", "libgmp10", "libffi8", "libpcre2-8-0",
)  # fmt: skip
"""Of every node; a kind of replication adds its own (``NodePair``)."""
MODULES: Final = ("virtio_pci", "virtio_blk", "virtio_net", "ramoops")
MODULE_OPTIONS: Final = {
    "ramoops": "mem_address=0x8000000 mem_size=0x200000 record_size=0x40000 max_reason=2"
}
BINARIES: Final = {
    "bin/busybox": "bin/busybox",
    "usr/bin/nbdkit": "bin/nbdkit",
    "usr/lib/x86_64-linux-gnu/nbdkit/plugins/nbdkit-file-plugin.so": "lib/nbdkit/file.so",
    "usr/lib/x86_64-linux-gnu/nbdkit/filters/nbdkit-fua-filter.so": "lib/nbdkit/fua.so",
}
"""Path in the package -> path in the node."""
LIBRARY_FOLDERS: Final = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
LOADER: Final = "lib64/ld-linux-x86-64.so.2"
LZ4_LEGACY_MAGIC: Final = b"\x02\x21\x4c\x18"
"""Magic of the compressed kernel in the image (LZ4 documentation: legacy frame)."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """Files for the QEMU options -kernel and -initrd."""

    kernel: Path
    """An ELF file with a PVH entry. After a warm reset it starts in 0.8 s; the compressed kernel
    takes 4 s."""
    initrd: Path
    description: str
    """Versions of the kernel and of the package that replicates."""


def ensure(pair: NodePair) -> Image:
    """Return the image of these nodes; build it if it does not exist. Raises RigError: a tool or package is
    missing, and how to get it."""
    archive, versions = _archive(pair)
    target = _folder() / _key(pair, versions)
    kernel = next(name for name in versions if name.startswith("linux-image-"))
    shown = pair.shown_version_of
    description = f"{kernel} {versions[kernel]}, {shown} {versions[shown]}"
    image = Image(kernel=target / "vmlinux", initrd=target / "initrd", description=description)
    if target.is_dir():
        return image
    with (_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            _build(pair, target, archive, versions)
    return image


def is_built(pair: NodePair) -> bool:
    """Return whether the image exists. Raises RigError like ``ensure``."""
    return (_folder() / _key(pair, _archive(pair)[1])).is_dir()


def _folder() -> Path:
    folder = Path(platformdirs.user_cache_dir("freezeframe")) / "rig"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _archive(pair: NodePair) -> tuple[Archive, dict[str, str]]:
    if shutil.which("lz4") is None:
        raise RigError(
            "lz4 is missing; it is needed to build the image of the rig: apt install lz4"
        )
    archive = Archive(_folder() / "apt", KERNEL_META)
    return archive, archive.versions((*PACKAGES, *pair.packages))


def _key(pair: NodePair, versions: dict[str, str]) -> str:
    digest = hashlib.sha256(RECIPE.encode() + msgspec.json.encode(pair))
    for name in sorted(versions):
        digest.update(f"{name}={versions[name]}\n".encode())
    for name, data in _guest_files():
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return f"{pair.name}-{digest.hexdigest()[:16]}"


def _guest_files() -> list[tuple[str, bytes]]:
    folder = resources.files("freezeframe.harness.rigs") / "guest"
    return sorted((entry.name, entry.read_bytes()) for entry in folder.iterdir() if entry.is_file())


def _build(pair: NodePair, target: Path, archive: Archive, versions: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as scratch:
        work = Path(scratch)
        root, product = work / "root", work / "product"
        root.mkdir()
        product.mkdir()
        try:
            archive.unpack(versions, work, root)
        except RigError as error:
            # Usual reason: the archive has newer packages now and keeps no old ones.
            archive.update()
            raise RigError(
                f"{error}; the lists of packages may be old: try again, or apt-get update"
            ) from error
        _extract_kernel(next(root.glob("boot/vmlinuz-*")), product / "vmlinux")
        with (product / "initrd").open("wb") as file:
            for entry in _entries(pair, root):
                file.write(entry)
        product.rename(target)


def _extract_kernel(vmlinuz: Path, vmlinux: Path) -> None:
    packed = vmlinuz.read_bytes()
    at = packed.find(LZ4_LEGACY_MAGIC)
    if at < 0:
        raise RigError(f"{vmlinuz.name} holds no LZ4 payload")
    # Other data follow after the payload: lz4 unpacks the frame and then reports an error, which is
    # ignored.
    done = subprocess.run(
        ["lz4", "-dc"], input=packed[at:], capture_output=True, timeout=60, check=False
    )
    if not done.stdout.startswith(b"\x7fELF"):
        raise RigError(
            f"{vmlinuz.name} could not be unpacked: {done.stderr.decode(errors='replace')[-200:]}"
        )
    vmlinux.write_bytes(done.stdout)


# --- the initrd ---------------------------------------------------------------------------------------------
def _entries(pair: NodePair, root: Path) -> Iterator[bytes]:
    """Return the entries of the archive: folders, programs, libraries, modules, files of the
    guest."""
    folders = ("bin", "sbin", "lib", "lib64", "lib/nbdkit", "lib/modules", "dev", "proc", "sys", "run", "tmp", "var",
               "var/lib", "var/lib/drbd", "var/run", "var/lock", "etc")  # fmt: skip
    for folder in folders:
        yield cpio_entry(folder, stat.S_IFDIR | 0o755, b"")
    for source, name in (BINARIES | pair.binaries).items():
        yield cpio_entry(name, stat.S_IFREG | 0o755, (root / source).read_bytes())
    for name, data in _libraries(root).items():
        yield cpio_entry(f"lib/{name}", stat.S_IFREG | 0o755, data)
    yield cpio_entry(LOADER, stat.S_IFLNK | 0o777, b"/lib/ld-linux-x86-64.so.2")
    modules = _modules(root, (*MODULES, *pair.modules))
    for module in modules:
        yield cpio_entry(f"lib/modules/{module.name}", stat.S_IFREG | 0o644, module.read_bytes())
    options = MODULE_OPTIONS | pair.module_options
    order = "".join(
        f"{module.name} {options.get(module.stem, '')}".rstrip() + "\n" for module in modules
    )
    yield cpio_entry("etc/modules", stat.S_IFREG | 0o644, order.encode())
    yield cpio_entry("setup", stat.S_IFREG | 0o644, pair.setup.encode())
    for name, data in _guest_files():
        yield cpio_entry(name, stat.S_IFREG | 0o755, data)
    # The kernel opens it for init before any file system is mounted.
    yield cpio_entry("dev/console", stat.S_IFCHR | 0o600, b"", device=(5, 1))
    yield cpio_entry("TRAILER!!!", 0, b"")


def _libraries(root: Path) -> dict[str, bytes]:
    """Return the shared objects by the name under which programs load them."""
    found = {}
    for folder in LIBRARY_FOLDERS:
        for path in sorted((root / folder).glob("*.so*")):
            if not path.is_dir():
                found[path.name] = path.resolve().read_bytes() if path.exists() else b""
    return {name: data for name, data in found.items() if data}


def _modules(root: Path, names: Sequence[str]) -> list[Path]:
    """Return the kernel modules in an order in which they can be loaded."""
    by_name = {
        path.stem.replace("-", "_"): path for path in root.glob("lib/modules/*/kernel/**/*.ko")
    }
    ordered: list[Path] = []

    def add(name: str) -> None:
        path = by_name.get(name)
        if path is None:
            raise RigError(f"the kernel package has no module {name}")
        if path in ordered:
            return
        needs = re.search(rb"\0depends=([\w,-]*)\0", path.read_bytes())
        for one in needs[1].decode().split(",") if needs and needs[1] else []:
            add(one.replace("-", "_"))
        ordered.append(path)

    for name in names:
        add(name)
    return ordered


_inode = iter(range(1, 1 << 30))


def cpio_entry(name: str, mode: int, data: bytes, *, device: tuple[int, int] = (0, 0)) -> bytes:
    """Encode one entry of a "newc" archive (kernel:
    Documentation/driver-api/early-userspace/buffer-format.rst)."""
    fields = (next(_inode), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
