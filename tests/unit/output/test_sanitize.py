"""No message that leaves the process shows a password, or has anything that a terminal obeys."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.admin.doctor import examine
from tuner.errors import StorageSchemaError, TunerError, UsageError
from tuner.output.log import say, tell
from tuner.output.sanitize import hide_password, one_line, printable
from tuner.storage.artifacts import artifacts_of
from tuner.tracking.mlflow import MlflowTracker, address
from tuner.tracking.wandb import WandbTracker
from tuner.trial.failures import describe

SECRET = "s3cr3t-W0rd"
FORMS = [
    f"postgresql://me:{SECRET}@127.0.0.1:1/tuner",
    f"postgresql://me:{SECRET}%40%2F%25@127.0.0.1:1/tuner",
    f"postgresql://me@127.0.0.1:1/tuner?password={SECRET}",
    f"postgresql://me@127.0.0.1:1/tuner?password={SECRET}'t",
    f"postgresql://me@127.0.0.1:1/tuner?connect_timeout=3&password={SECRET}&application_name=x",
    f"postgresql://me@127.0.0.1:1/tuner?p%61ssword={SECRET}",
    f"postgresql://me@127.0.0.1:1/tuner?PASSWORD={SECRET}",
    f"postgresql://me@127.0.0.1:1/tuner?sslpassword={SECRET}",
    f"http://me:{SECRET}@127.0.0.1:1",
    f"https://{SECRET}@127.0.0.1:1",
    f"host=127.0.0.1 password={SECRET} port=1",
    f"host=127.0.0.1 password='it\\'s {SECRET}' port=1",
    f"host=127.0.0.1 password=it\\ {SECRET} port=1",
    f"host=127.0.0.1 password=it's-{SECRET} port=1",
    f"MLFLOW_TRACKING_TOKEN={SECRET}",
    f"WANDB_API_KEY={SECRET}",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("around", ["{}", "'{}'", '"{}"', "no route to {}, again", "({})", "storage {}: 3 ms", "{}\nx"])
def test_a_password_is_hidden_in_every_form(form: str, around: str) -> None:
    text = around.format(form)
    shown = hide_password(text)
    assert SECRET not in shown
    assert "***" in shown
    assert hide_password(shown) == shown
    assert shown.partition("***")[0] == text[: len(shown.partition("***")[0])]
    ending = around.partition("{}")[2]
    assert shown.endswith(ending), "the words around a URL stay"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:@db/tuner",
        "postgresql://me@db/tuner?password=",
        "postgresql://me@db/tuner?password=&connect_timeout=3",
        "postgresql://me@db/tuner?passfile=/home/me/.pgpass",
        "{'password': ''}",
        "host=db password='' port=1",
        "a password is needed",
    ],
)
def test_an_empty_password_and_a_password_file_are_shown(text: str) -> None:
    assert hide_password(text) == text


@given(st.text(min_size=1))
@pytest.mark.slow
def test_an_option_of_any_text_is_hidden(password: str) -> None:
    before = "postgresql://me@db/tuner?password="
    escaped = quote(password.encode("utf-8", "surrogatepass"), safe="'():;,")
    assert hide_password(f"{before}{escaped}&x=1") == f"{before}***&x=1"
    assert re.fullmatch(r"\*\*\*['\"]?[)\],;.:}]*", hide_password(f"{before}{escaped}").removeprefix(before))


def test_errors_hide_passwords_also_in_their_arguments() -> None:
    for form in FORMS:
        error = StorageSchemaError(f"the tables in {form} are not of this version")
        assert SECRET not in f"{error} {error!r} {error.args}"
        with pytest.raises(ValueError, match=r"127|TOKEN|KEY") as raised:
            raise ValueError(form)
        assert SECRET not in json.dumps(describe(raised.value))
    assert str(TunerError(3, "word")) == "(3, 'word')"


def test_every_message_hides_passwords(capsys: pytest.CaptureFixture[str]) -> None:
    for form in FORMS:
        tell(f"cannot reach {form}", "away", storage=form)
        say(f"written to {form}")
    told = capsys.readouterr().err
    assert SECRET not in told
    assert told.count("***") >= 2 * len(FORMS)


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env})


def test_a_json_log_hides_passwords_in_every_field() -> None:
    code = (
        "import logging\n"
        "from tuner.output.log import tell, use_json\n"
        "use_json()\n"
        f"for form in {FORMS!r}:\n"
        "    tell(form, 'one', storage=form, deep={'a': [form, (form,)]}, other=ValueError(form))\n"
        "    logging.getLogger('other').warning('said %s', form)\n"
        f"raise ValueError({FORMS[2]!r})\n"
    )
    done = run(code)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert len(lines) == 2 * len(FORMS) + 1
    assert SECRET not in done.stderr
    assert lines[-1]["event"] == "crash"


def test_a_trace_hides_passwords() -> None:
    code = "from tuner.output.log import clean_traces\nclean_traces()\n"
    in_thread = f"import threading\nthreading.Thread(target=open, args=[{FORMS[0]!r}]).start()"
    for raised in (f"raise ValueError({FORMS[2]!r})", in_thread):
        done = run(code + raised)
        assert "Traceback" in done.stderr
        assert SECRET not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("form", [FORMS[0], FORMS[5]])
def test_commands_hide_the_password_of_a_storage(form: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tuner", "best", "x"],
        capture_output=True,
        text=True,
        env={**os.environ, "TUNER_STORAGE": form, "TUNER_DEBUG": "1"},
    )
    assert done.returncode != 0
    assert SECRET not in done.stderr + done.stdout
    assert "127.0.0.1" in done.stderr


TRACKED = [
    f"http://me:{SECRET}@127.0.0.1:1/x",
    f"http://me:{SECRET}%2F@127.0.0.1:1/x",
    f"https://{SECRET}@127.0.0.1:1/x",
    f"postgresql://me@127.0.0.1:1/mlflow?password={SECRET}",
    f"postgresql://me:{SECRET}@127.0.0.1:1/mlflow",
]


@pytest.mark.parametrize("uri", TRACKED)
def test_an_mlflow_address_has_no_password(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SECRET not in address(uri)
    tracker = MlflowTracker.__new__(MlflowTracker)
    tracker._uri, tracker._address = uri, address(uri)
    assert SECRET not in tracker._line(OSError(f"no route to {uri}"))
    if uri == TRACKED[0]:
        assert SECRET not in tracker._line(OSError(f"login {SECRET} refused"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr("tuner.admin.doctor._devices", dict)
    rows = examine("sqlite:///none.db", artifacts_of(Path.cwd()))
    assert SECRET not in json.dumps(rows)


@pytest.mark.parametrize(
    "uri", [f"http://me:{SECRET}/a@127.0.0.1:1", f"http://me:{SECRET}#a@h", f"ftp://h?password={SECRET}"]
)
def test_an_mlflow_uri_that_would_show_part_of_a_password_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match=r"^an MLflow URI must be http") as caught:
        address(uri)
    assert SECRET not in str(caught.value)


def test_an_empty_mlflow_password_changes_no_message() -> None:
    tracker = MlflowTracker.__new__(MlflowTracker)
    tracker._uri = "http://me:@host"
    tracker._address = address(tracker._uri)
    assert tracker._line(OSError("no route")) == "MLflow at http://host: no route"


def test_the_address_of_wandb_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", f"https://me:{SECRET}@wandb.example")
    assert WandbTracker("team/project").target == "wandb https://me:***@wandb.example team/project"


# --- Terminals


def test_what_a_terminal_obeys_is_shown_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("\x1b[31mred\x07\x9b0m\0\r\x7f") == "\\x1b[31mred\\x07\\x9b0m\\x00\\x0d\\x7f"
    assert printable("a\u202eb\ud800\u2028") == "a\\u202eb\\ud800\\u2028"
    assert printable("é 漢 ‍ \n\t") == "é 漢 ‍ \n\t"
    assert one_line("a\nb\tc") == "a\\nb\\tc"
    tell("name \x1b]0;title\x07", "named")
    assert capsys.readouterr().err == "tuner: name \\x1b]0;title\\x07\n"


@given(st.text(st.characters()))
def test_printable_text_has_no_control_characters_and_keeps_the_rest(text: str) -> None:
    shown = one_line(text)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", shown)
    shown.encode()
    if text.isprintable():
        assert shown == text
