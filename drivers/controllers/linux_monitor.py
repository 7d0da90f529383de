"""The secondary's own monitor, on a Linux node: a shell program that reads the node's kernel log, and at
the first complaint of the replication writes the primary's armed line to a serial line between the two
nodes, and then carries out its own. No process of the harness takes part in it.

It is a machine with one input, the kernel log: the peer's answers and its own alarms are noted there, and
come back in their order among the kernel's lines. Only the kernel complains: what a program writes into
the log has another facility (the first number of a record is 8 or more). What was logged before it began
is passed over. It is armed once the peer has answered a rehearsal of the line that it will write, and is good
for one action.
"""

import re
import shlex
from typing import Final

from freezeframe.drivers.controllers import linux_scripts
from freezeframe.drivers.controllers.linux_files import put
from freezeframe.drivers.controllers.linux_scripts import Scripts
from freezeframe.drivers.controllers.linux_shell import MARK, Shell
from freezeframe.harness.core.events import NS_PER_MS, Ns
from freezeframe.harness.core.text import escape
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.roles import Clock

ATTEMPTS: Final = 3
"""Of a line that is not answered."""
ANSWER_S: Final = 1
"""For the answer of the primary, which stores its state before it crashes."""
ASK_AGAIN_NS: Final = 100 * NS_PER_MS
ARMED: Final = "armed"

# It leads a process group. ff_m: the incident; ff_s: begins -> tries -> watches -> tells -> over; ff_n: lines written
# to the peer, ff_e: the last that is written in this state.
MONITOR: Final = """ff_log() {
echo "{note} monitor $ff_m: $1" >{kernel_log}
echo "$ff_m: $1" >&2
}
ff_hear() {
while read -r ff_x; do
case $ff_x in *"{mark}! $ff_m "*) ff_log "answer: ${ff_x##*"$ff_m "}" ;; esac
done
}
ff_tell() {
ff_n=$((ff_n+1))
printf '%s\\n' "$1" >&8
( sleep {answer_s}; ff_log "silence: $ff_n" ) &
}
ff_begin() { ff_s=$1; ff_e=$((ff_n+{attempts})); ff_tell "$2"; }
ff_end() {
ff_log ended
kill -s KILL -- -$$
}
ff_step() {
case $ff_s,$1 in
begins,*"{note} monitor $ff_m: begins"*) ff_begin tries "$ff_trial" ;;
tries,*"{note} monitor $ff_m: answer: rehearsed"*) ff_s=watches; ff_log armed ;;
*,*"{note} monitor $ff_m: answer: rehearsed"*) ;;
tries,*"{note} monitor $ff_m: answer: "*) ff_s=over; ff_log "not armed: ${1##*: }" ;;
watches,[0-7],*)
case $1 in {complaints})
ff_begin tells "$ff_primary"
ff_log "instructs the primary, for record ${1%%;*} of this log"
;;
esac
;;
tells,*"{note} monitor $ff_m: answer: "*) ff_s=over; eval "$ff_own" ;;
*,*"{note} monitor $ff_m: silence: $ff_n"*)
case $ff_s in
tries) [ $ff_n -ge $ff_e ] && { ff_s=over; ff_log "not armed: the primary does not answer"; } || ff_tell "$ff_trial" ;;
tells) [ $ff_n -ge $ff_e ] && { ff_s=over; eval "$ff_own"; } || ff_tell "$ff_primary" ;;
esac
;;
esac
}
ff_n=0
ff_s=begins
stty -F "$ff_line" raw -echo && exec 8<>"$ff_line" || { ff_log "not armed: $ff_line cannot be opened"; exit 1; }
ff_hear <&8 &
ff_log begins
cat {kernel_log} | while read -r ff_l; do
ff_step "$ff_l"
[ "$ff_s" = over ] && ff_end
done
ff_end
"""


def program(
    scripts: Scripts, line: str, incident_id: bytes, primary_frame: bytes, own_frame: bytes
) -> str:
    """The file on the node: ``line`` leads to the primary's shell; the frames are armed lines."""
    trial = re.sub(rb"ff_a=\w+", b"ff_a=tryit", primary_frame)
    words = {"line": line, "m": incident_id.hex(), "trial": trial.decode(),
             "primary": primary_frame.decode(), "own": own_frame.decode()}  # fmt: skip
    head = "".join(f"ff_{name}={shlex.quote(text)}\n" for name, text in words.items())
    body = MONITOR.replace("{complaints}", scripts.complaints).replace("{mark}", MARK)
    body = body.replace("{answer_s}", str(ANSWER_S)).replace("{attempts}", str(ATTEMPTS))
    return head + linux_scripts.filled(body)


def begin(shell: Shell, who: str, text: str, clock: Clock, deadline_ns: Ns) -> None:
    """Put the program on the node, end an earlier one, and wait until it is armed. RigError: it is not."""
    file = f"{linux_scripts.FOLDER}/monitor"
    put(shell, who, text, file, deadline_ns)
    # A process group of its own, which a later arming ends: its number may be another's by now. It goes on once
    # none of the group runs (a dead one that nobody has reaped does not), and not at all if one cannot be ended.
    shell.ask(
        f": >{file}.log\nff_k=0\n"
        f'ff_p=$(cat {file}.pid 2>/dev/null) && grep -aqs {file} "/proc/$ff_p/cmdline" && {{\n'
        'kill -s KILL -- "-$ff_p"\n'
        'while [ $ff_k -lt 100 ] && cat /proc/[0-9]*/stat 2>/dev/null | grep -q ") [^ZX] [0-9]* $ff_p "; do\n'
        "ff_k=$((ff_k+1))\ndone\n}\n"
        f"[ $ff_k -lt 100 ] && setsid sh -c 'echo $$ >{file}.pid; exec sh {file}' "
        f"</dev/null >/dev/null 2>{file}.log &",
        deadline_ns,
    )
    mark = re.search(r"^ff_m=(\w+)$", text, re.M)
    assert mark is not None
    state, said = re.compile(rf"{mark[1]}: (not )?{ARMED}(?:: ([^;]*))?"), ""
    while clock.now() < deadline_ns:
        said = "; ".join(shell.ask(f"cat {file}.log", deadline_ns))
        if found := state.search(said):
            if not found[1]:
                return
            said = found[2] or said
            break
        shell.await_line(lambda _: False, min(clock.now() + ASK_AGAIN_NS, deadline_ns))
    raise RigError(
        f"{who}: its monitor is not armed: {escape(said[-160:]) or 'it says nothing'}: does peer_line lead to a "
        "root shell of the primary?"
    )


def check(scripts: Scripts, model: str) -> None:
    """UsageError: such a node's kernel log does not complain."""
    if not scripts.complaints:
        raise UsageError(
            f"peer_line: a node of {model} says nothing in its log that it could watch for"
        )
