"""What an incident was recorded by: copies of its bench and rule files, without a secret in them."""

import json
import string
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.edge.versions import commit
from freezeframe.harness.incidents.basis import REMOVED, keep_basis, without_secrets
from freezeframe.harness.incidents.incident import Incident

SECRET = "hunter2-Zx"


@pytest.mark.parametrize(
    "line",
    [
        f'password = "{SECRET}"',
        f'  snmp_community="{SECRET}"  # as on the label: {SECRET}',
        f'options = {{ user = "a", api_key = "{SECRET}" }}',
        f'resource = "https://admin:{SECRET}@pdu.lab/outlet"',
        f'auth_token = ["x{SECRET}", "{SECRET}"]',
        f'psk = """\n{SECRET}\n"""',
        f'[power.credentials]\nline = "{SECRET}"',
    ],
)
def test_a_secret_is_taken_out_and_the_rest_stays(line: str) -> None:
    text = f'[bench]\nname = "lab"\n[power]\n{line}\n[workload]\nbytes_mib = 4\n'
    made = without_secrets(text)
    assert SECRET not in made and REMOVED in made
    assert 'name = "lab"' in made and "bytes_mib = 4" in made


@pytest.mark.parametrize(
    "text",
    [
        'password = "\\u0068unter2"',  # the file does not hold the secret's own letters
        "pin_password = 1234",
        "not = [toml",
    ],
)
def test_where_that_is_not_certain_there_is_no_copy(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        without_secrets(text)


# What stands around a secret in an argument of [notify]'s command.
AROUND = [
    "{}://hooks.lab/T0/{{}}", "{}://pager:{{}}@lab", "Bearer {{}}", "bEARER  {{}}", "basic {{}}",
    "Authorization: Bearer {{}}", "pager:{{}}@lab:5000", "--login=pager:{{}}@lab", "--token={{}}",
    "X-Api-Key: {{}}", "curl -H 'Authorization: Bearer {{}}' {}://hooks.lab/",
    'curl -H "Authorization: Bearer {{}}" "{}://hooks.lab/{{}}?k={{}}"',
]  # fmt: skip
OPTIONS = ["-u", "--user", "--token", "--password", "--api-key"]
SCHEMES = st.sampled_from(["http", "https", "HTTPS", "Http", "ftp", "tgram"])
NOTIFY_SECRETS = st.text(
    string.ascii_letters + string.digits + string.punctuation.replace("@", ""),
    min_size=8, max_size=20,
)  # fmt: skip


@st.composite
def notify_tables(draw: st.DrawFn) -> tuple[str, str]:
    """(a secret, a bench file with it in its [notify])"""
    secret, scheme = draw(NOTIFY_SECRETS), draw(SCHEMES)
    held = draw(st.sampled_from(AROUND)).format(scheme).format(*[secret] * 3)
    kind = draw(st.sampled_from(["argument", "after an option", "post", "header"]))
    match kind:
        case "argument":
            said = {"command": ["sh", "-c", held, "lab"]}
        case "after an option":
            said = {"command": ["./page.sh", draw(st.sampled_from(OPTIONS)), secret, "lab"]}
        case "post":
            said = {"post": f"{scheme}://hooks.lab/T0/{secret}"}
        case _:
            said = {"headers": {"X-Lab": held}}
    lines = [f"{key} = {_toml(value)}" for key, value in said.items()]
    return secret, "\n".join(['[bench]\nname = "lab"\n[notify]', *lines, 'on = ["blind"]\n'])


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


@given(notify_tables())
def test_no_secret_of_notify_is_in_the_copy(given: tuple[str, str]) -> None:
    secret, text = given
    try:
        made = without_secrets(text)
    except ValueError:  # it is not certain, so there is no copy; seldom, see the next test
        return
    held = json.dumps(tomllib.loads(made)) + made
    assert secret not in held and json.dumps(secret)[1:-1] not in held
    assert tomllib.loads(made)["bench"] == {"name": "lab"}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
def test_a_copy_of_notify_keeps_what_is_no_secret(around: str, scheme: str) -> None:
    held = around.format(scheme).format(*[SECRET] * 3)
    said = _toml(["sh", "-c", held, "lab", "-v"])
    made = without_secrets(f'[bench]\nname = "lab"\n[notify]\ncommand = {said}\non = ["blind"]\n')
    assert SECRET not in made and REMOVED in made
    table = tomllib.loads(made)
    assert table["bench"] == {"name": "lab"} and table["notify"]["on"] == ["blind"]
    assert table["notify"]["command"][3:] == ["lab", "-v"]


def test_a_file_without_secrets_is_copied_as_it_is() -> None:
    text = load_bench("sim").path.read_text()
    assert without_secrets(text) == text


def test_the_copies_are_part_of_the_incident(tmp_path: Path) -> None:
    bench = load_bench("sim")
    incident = Incident.create(tmp_path, bench="sim", seed=1)
    keep_basis(incident, bench)
    incident.finish("pass")
    stored = Incident.open(incident.path)
    kept = stored.record.judged_by
    assert kept is not None and kept.bench_file == "bench.toml" and kept.commit == commit()
    assert (incident.path / "bench.toml").read_bytes() == bench.path.read_bytes()
    rules = [(incident.path / name).read_bytes() for name in kept.rule_files]
    assert rules == [path.read_bytes() for path in bench.rule_paths()] and rules
    assert stored.altered() == []
    (incident.path / kept.rule_files[0]).write_text("")
    assert stored.altered() == [f"{kept.rule_files[0]} was altered since the incident was closed"]


@pytest.mark.parametrize("budget_us", [None, 250.0])
def test_the_budget_of_a_reaction_is_kept(tmp_path: Path, budget_us: float | None) -> None:
    line = "" if budget_us is None else f"reaction_budget_us = {budget_us}\n"
    source = load_bench("sim").path
    file = tmp_path / "bench.toml"
    text = source.read_text().replace("[policy]\n", f"[policy]\n{line}")
    file.write_text(text.replace('"rules/', f'"{source.parent}/rules/'))
    incident = Incident.create(tmp_path / "out", bench="sim", seed=1)
    keep_basis(incident, load_bench(str(file)))
    incident.finish("pass")
    kept = Incident.open(incident.path).record.judged_by
    assert kept is not None and kept.reaction_budget_us == budget_us


def test_the_commit_is_the_checkouts() -> None:
    assert commit() == "" or len(commit()) >= 40
