"""The shell scripts of a Linux node. They run in busybox ash, dash and bash, typed into an interactive
shell or not.

``functions`` is put on the node as a file (``LinuxNode``): an interactive shell takes a line of some
1,000 bytes at most (busybox: 1,023) and cuts a longer one without a word. No line here, and none
that is armed, is longer than MAX_LINE_BYTES. No ``!`` stands directly before a letter or a digit: an
interactive bash would look for it in its history. Every path is absolute, so that nothing depends on a
``cd`` that may fail; a listed set (``.info``) appears last and at once; only files of our own are
removed.
"""

from dataclasses import dataclass
from typing import Final

MAX_LINE_BYTES: Final = 450
FOLDER: Final = "/run/freezeframe"
NOTE: Final = "freezeframe:"
"""Begins the lines that a freeze leaves in the kernel log."""
KERNEL_LOG: Final = "/dev/kmsg"
NEWS_CENTISECONDS: Final = 30
NEWS_TRIES: Final = 10_000
"""Where /proc/uptime stands still."""
CRASH: Final = """echo 1 >/proc/sys/kernel/sysrq
echo w >/proc/sysrq-trigger
echo c >/proc/sysrq-trigger"""
"""Blocked tasks into the kernel log, then the crash."""
ABLE: Final = "[ -w /proc/sysrq-trigger ]"
"""Whether CRASH could do it; asked in a rehearsal."""

SERIAL: Final = """read -r ff_s </sys/class/dmi/id/product_serial
[ "$ff_s" ] || read -r ff_s </etc/machine-id"""
WHO: Final = """ff_s=; ff_b=
{serial}
read -r ff_b </proc/sys/kernel/random/boot_id"""
IDENTIFY: Final = """{who}
read -r ff_v </proc/sys/kernel/osrelease; read -r ff_u ff_x </proc/uptime
echo "who $ff_s $ff_b $ff_v $ff_u"
while read -r ff_k ff_x; do [ "$ff_k" = btime ] && echo "btime $ff_x"; done </proc/stat
{state}
ff_state state"""

FREEZE: Final = """ff_say() { echo "@f""f! $ff_i $1"; }
ff_go() {
[ "$ff_z" ] || { ff_say "not prepared"; return; }
{who}
if [ "$ff_s/$ff_b" = "$ff_w" ]; then "ff_$ff_a"
elif [ "$ff_s" = "${ff_w%/*}" ]; then ff_say "stale epoch"
else ff_say "wrong target"; fi
}
ff_crash() {
ff_say ok
exec 9>{kernel_log}
echo "{note} warmstart $ff_i $ff_r $ff_b" >&9
ff_state "{note}" >&9
ff_news
{crash}
}
ff_tryit() {
if ( exec 9>{kernel_log} && {able} ) 2>/dev/null; then ff_say rehearsed
else ff_say "no root shell"; fi
}
ff_store() {
ff_d={folder}/$ff_i.d
mkdir -p "$ff_d" && ff_evidence 2>/dev/null
find "$ff_d" -size 0 -exec rm -f {} + 2>/dev/null
ff_pack "$ff_i" save "$ff_r" "$ff_b" && ff_say ok || ff_say "not saved"
}"""
"""Who crashes, rehearses or saves: ``ff_a`` of ``ff_i`` (incident), ``ff_r`` (reason), ``ff_w`` (serial
number and boot). Of builtins only where it leads to the crash, which is not to wait for a fork."""
NEWS: Final = """ff_news() {
trap '' INT
read -r ff_t ff_x </proc/uptime
ff_n=0
while [ $ff_n -lt {tries} ]; do
ff_n=$((ff_n+1))
ff_whole || break
read -r ff_u ff_x </proc/uptime
[ $((${ff_u%.*}${ff_u#*.}-${ff_t%.*}${ff_t#*.})) -ge {centiseconds} ] && break
done
}"""
"""Waits until the replication itself has noticed, for 0.3 s at most. The secondary's complaint is
here some 20 ms before its end of the connection reaches the primary; a node that crashed at once
would not have its own failure lines in its record. The state of this moment is in the kernel log by then,
and nothing is overwritten meanwhile: its log holds minutes."""
EVIDENCE: Final = """ff_evidence() {
ff_state "" >"$ff_d/state"
dmesg >"$ff_d/dmesg"
cat /proc/meminfo >"$ff_d/meminfo"
cat /proc/interrupts >"$ff_d/interrupts"
cat /proc/loadavg /proc/uptime >"$ff_d/load"
cat /proc/net/dev /proc/net/tcp >"$ff_d/network"
cat /proc/diskstats >"$ff_d/diskstats"
grep . /proc/[0-9]*/stat /proc/[0-9]*/stack >"$ff_d/tasks"
{evidence}
cat /sys/kernel/tracing/trace >"$ff_d/trace" || cat /sys/kernel/debug/tracing/trace >"$ff_d/trace"
}"""
"""What a save collects; a node without one of these just has no such file."""
PACK: Final = """ff_pack() {
ff_p={folder}/$1
( cd "$ff_p.d" && tar cf - -- * ) >"$ff_p.tar" || return
gzip -9 <"$ff_p.tar" >"$ff_p.set" || return
ff_x="$(wc -c <"$ff_p.tar") $(wc -c <"$ff_p.set") $(sha256sum <"$ff_p.set" | cut -c1-64)"
echo set "$1" "$2" "$3" "$4" $ff_x >"$ff_p.new" || return
rm -f "$ff_p.tar"
mv "$ff_p.new" "$ff_p.info"
}"""
"""id kind reason boot_id: the archive of the files in id.d, and the line that lists it."""

END_OF_RECORD: Final = r"Kernel panic\|sysrq: Trigger a crash\|---\[ end"
LIST: Final = """ff_part() {
[ -f "$1" ] || return 0
ff_h=$(head -n 1 "$1" | tr -dc 'A-Za-z0-9# ' | cut -c1-60)
ff_n=$(echo "${ff_h##* Part}" | tr -dc 0-9); ff_k=${1##*-}
[ "$ff_n" ] && [ "${ff_h%"#"* Part$ff_n}" != "$ff_h" ] || ff_n=0
if [ "$ff_n" = 0 ]; then ff_k=$1
else
[ ${#ff_k} -gt 11 ] && ff_k=${ff_k%??????}
ff_k=${1%/*}/$ff_k/${ff_h%% *}
fi
echo "$(echo "$ff_k" | sha256sum | cut -c1-16) $ff_n $1"
}
ff_parts() {
for ff_f in /sys/fs/pstore/dmesg-* /var/lib/systemd/pstore/dmesg-*; do ff_part "$ff_f"; done
for ff_f in /var/lib/systemd/pstore/*/dmesg-* /var/lib/systemd/pstore/*/*/dmesg-*; do ff_part "$ff_f"; done
for ff_f in /var/lib/systemd/pstore/*/dmesg.txt /var/lib/systemd/pstore/*/*/dmesg.txt; do
ls "${ff_f%/*}"/dmesg-* >/dev/null 2>&1 || ff_part "$ff_f"
done
for ff_f in /var/crash/*/dmesg.*; do ff_part "$ff_f"; done
}
ff_record() {
ff_d={folder}
grep "^$1 " "$ff_d/parts" | sort -k 2,2nr >"$ff_d/group"
ff_m=$(wc -l <"$ff_d/group"); read -r ff_x ff_n ff_f <"$ff_d/group"
[ "$ff_n" -le $ff_m ] && ff_m=
while read -r ff_x ff_n ff_f; do
if [ "$ff_n" = 0 ]; then cat "$ff_f"; else tail -n +2 "$ff_f"; fi
done <"$ff_d/group" >"$ff_d/record"
set -- $(grep -ao '{note} [aw][a-z]* [0-9a-f]* [0-9]* [0-9a-f-]*' "$ff_d/record" | tail -n 1)
[ -n "$3" ] || set -- x crash $(sha256sum <"$ff_d/record" | cut -c1-32) 0 unknown
ff_d=$ff_d/$3.d
[ -f "{folder}/$3.info" ] && [ ! -f "$ff_d/incomplete" ] && return 0
cmp -s {folder}/record "$ff_d/record" && [ -f "{folder}/$3.info" ] && return 0
mkdir -p "$ff_d" || return
cp {folder}/record "$ff_d/record" || return
cut -d ' ' -f 3- <{folder}/group >"$ff_d/source"
ff_state "" >"$ff_d/state-after"; dmesg >"$ff_d/dmesg-after"
rm -f "$ff_d/incomplete"
grep -aq '{end}' "$ff_d/record" || echo "the record has no end" >"$ff_d/incomplete"
[ -z "$ff_m" ] || echo "parts of the record are missing" >>"$ff_d/incomplete"
ff_pack "$3" "$2" "$4" "$5"
}
ff_list() {
[ -d /sys/fs/pstore ] && ! grep -q pstore /proc/mounts && mount -t pstore pstore /sys/fs/pstore
ff_parts >{folder}/parts
for ff_i in $(cut -d ' ' -f 1 <{folder}/parts | sort -u); do ff_record "$ff_i"; done
for ff_f in {folder}/*.info; do
[ -f "$ff_f" ] || continue
ff_x=0; [ -f "${ff_f%.info}.d/incomplete" ] && ff_x=1
echo "$(cat "$ff_f") $ff_x"
done
}"""
"""Makes a set of every record that the node has kept and that is not one yet, and lists all sets.

A record may be in several files, "Panic#1 Part2" before "Part1" (kmsg_dump goes back from the end);
their numbers differ in the last six digits at most: EFI appends part and count to the time of the
crash, systemd-pstore groups ERST's so. systemd-pstore moves them to /var/lib/systemd/pstore, into a
folder for each crash or not; kdump keeps /var/crash. A record without the note of a freeze is a
crash that nobody asked for; it is named by its own hash. A note "armed" says only which incident was
the one to come when the node crashed."""

WHOLE: Final = "ff_z=whole"
"""The last line: nothing is done by a file of which a part is missing."""


@dataclass(frozen=True, kw_only=True)
class Scripts:
    """What differs between kinds of replication: shell as above."""

    state: str
    """The function ``ff_state PREFIX``, of builtins only: prints the state of the replication, each
    line after the prefix and a space."""
    whole: str
    """The function ``ff_whole``, of builtins only: true while the replication has noticed no
    failure."""
    evidence: str
    """What a save collects besides, into files in "$ff_d"."""
    complaints: str = ""
    """Patterns of ``case``: lines of the secondary's kernel by which it knows that a copy, or its own response to
    it, went wrong (``linux_monitor``); "": it never says."""
    serial: str = ""
    """Reads ``ff_s``, the serial number; "": as SERIAL."""


def filled(script: str) -> str:
    for name, value in {
        "{folder}": FOLDER, "{note}": NOTE, "{kernel_log}": KERNEL_LOG, "{crash}": CRASH, "{able}": ABLE,
        "{tries}": str(NEWS_TRIES), "{centiseconds}": str(NEWS_CENTISECONDS), "{end}": END_OF_RECORD,
    }.items():  # fmt: skip
        script = script.replace(name, value)
    return script


def identify(scripts: Scripts) -> str:
    """The question who is there."""
    return _of(scripts, IDENTIFY.replace("{state}", scripts.state))


def functions(scripts: Scripts) -> str:
    """All that is put on the node."""
    own = scripts.state, scripts.whole, EVIDENCE.replace("{evidence}", scripts.evidence)
    return _of(scripts, "\n".join((*own, FREEZE, NEWS, PACK, LIST, WHOLE, "")))


def read_block(device: str, first_sector: int, sectors: int) -> str:
    """Prints the SHA-256 of these sectors, then themselves as base64: as they lie on the disk where it
    can be read past the node's cache, which does not see what the replication writes. The second dd
    empties the file first: the first one may have failed halfway."""
    read = f"dd if={device} bs=512 skip={first_sector} count={sectors}"
    kept = f">{FOLDER}/block 2>/dev/null"
    return f"""mkdir -p {FOLDER}
{read} iflag=direct {kept} || {read} {kept}
sha256sum <{FOLDER}/block | cut -c1-64
base64 <{FOLDER}/block; rm -f {FOLDER}/block"""


def serial_in(path: str) -> str:
    """Shell that reads the serial number in that file's first line."""
    return f"read -r ff_s <{path}"


def _of(scripts: Scripts, script: str) -> str:
    return filled(script.replace("{who}", WHO).replace("{serial}", scripts.serial or SERIAL))


def path() -> str:
    return f"{FOLDER}/functions"
