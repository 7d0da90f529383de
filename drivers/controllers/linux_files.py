"""Small files put on a Linux node over the line of its shell, whole or not at all.

They travel as base64: a shell that has lost the start of a question finds no command of ours in the
rest.
"""

import base64
import hashlib
from typing import Final

from freezeframe.drivers.controllers import linux_scripts
from freezeframe.drivers.controllers.linux_shell import Shell
from freezeframe.harness.core.events import Ns
from freezeframe.harness.errors import RigError

PUT: Final = "put"
"""Said when the file is there, and whole."""
PUT_TRIES: Final = 5
LINES_OF_A_PIECE: Final = 14
"""Some 1,060 bytes: a terminal holds 4,095 that its shell has not read yet, and drops the rest."""


def put(shell: Shell, who: str, content: str, file: str, deadline_ns: Ns) -> None:
    """Have that file on the node. RigError: it did not arrive whole; ``who`` begins the error's text."""
    if PUT in shell.ask(if_whole(content, file, f"echo {PUT}"), deadline_ns):
        return
    # What is typed while an earlier question is given up may lose bytes: the terminal drops them.
    for _ in range(PUT_TRIES):
        answers = [shell.ask(one, deadline_ns) for one in questions_to_put(content, file)]
        if PUT in answers[-1]:
            return
    raise RigError(
        f"{who}: the functions for {file} do not arrive whole on the node: "
        "is the line clean, is it a root shell, are cat, base64, mv and sha256sum there?"
    )


def questions_to_put(content: str, file: str) -> list[str]:
    """What is typed for it, in pieces that a terminal holds."""
    parts = f"{file}.[0-9][0-9]"
    questions = [f"mkdir -p {linux_scripts.FOLDER}\nrm -f {parts}"]
    encoded = base64.encodebytes(content.encode()).decode().splitlines(keepends=True)
    for number, at in enumerate(range(0, len(encoded), LINES_OF_A_PIECE)):
        piece = "".join(encoded[at : at + LINES_OF_A_PIECE])
        questions.append(f"cat >{file}.{number:02d} <<'@ff_end'\n{piece}@ff_end")
    there = if_whole(content, f"{file}.new", f"mv {file}.new {file} && echo {PUT}")
    questions.append(f"cat {parts} | base64 -d >{file}.new\nrm -f {parts}\n{there}")
    return questions


def if_whole(content: str, file: str, act: str) -> str:
    """Shell that does ``act`` when that file is ``content``, to the byte."""
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    return f'[ "$(sha256sum <{file} | cut -c1-64)" = {sha256} ] && {act}'
