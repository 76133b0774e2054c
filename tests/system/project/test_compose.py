"""The container files: what can be checked without Docker, and the services' own commands run natively."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import databases
import pytest
import sqlalchemy
import yaml
from dashboard_server import make_users

ROOT = Path(__file__).resolve().parents[3]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service and "entrypoint" not in service]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
NASTY = "a$b ${c} #d'e\"f:g/h@i%j\\k"
"""A password with what shells, URLs, compose files and SQL give a meaning to."""


def values(node: Any) -> list[str]:
    """Every text in a tree of dicts and lists."""
    if isinstance(node, dict):
        return list(itertools.chain.from_iterable(map(values, node.values())))
    if isinstance(node, list):
        return list(itertools.chain.from_iterable(map(values, node)))
    return [str(node)]


def test_ports_are_published_on_loopback_alone() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert published == {"dashboard": ["127.0.0.1:8080:8080"], "mlflow": ["127.0.0.1:5000:5000"]}
    assert not [name for name, service in SERVICES.items() if "network_mode" in service]


def test_the_password_comes_from_the_environment_and_has_no_default() -> None:
    given = {
        (name, key): value
        for name, service in SERVICES.items()
        for key, value in service["environment"].items()
        if "PASS" in key
    }

    assert {name: key for name, key in given} == {
        **dict.fromkeys(SERVICES, "PGPASSWORD"),
        "postgres": "POSTGRES_PASSWORD",
    }
    assert all(re.fullmatch(r"\$\{POSTGRES_PASSWORD:\?[^}]+\}", value) for value in given.values())
    urls = [text for text in values(COMPOSE) if "postgresql" in text]
    assert urls
    assert not [url for url in urls if re.search(r"://[^/@]*:[^/@]*@", url)]
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def test_workers_can_be_scaled_and_stop_in_order() -> None:
    worker = SERVICES["worker"]

    assert not {"container_name", "ports", "hostname"} & set(worker)
    assert worker["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert worker["restart"] == "on-failure:3"  # not for ever: a broken study fails trials at each start
    assert worker["stop_signal"] == "SIGTERM"
    assert worker["init"] is True
    mounts = [volume.split(":") for volume in worker["volumes"]]
    assert ["./studies", "/studies", "ro"] in mounts
    assert [mount[0] for mount in mounts if mount[1] == "/home/tuner/.cache"] == ["cache"]
    named = {mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}
    assert {name for name in named if not name.startswith(".")} == set(COMPOSE["volumes"])
    assert all((ROOT / name).is_dir() for name in named if name.startswith("."))


def test_every_service_has_a_health_check() -> None:
    without = [name for name, service in SERVICES.items() if "healthcheck" not in service]

    assert without == ["worker"]  # it has the image's
    assert "\nHEALTHCHECK " in DOCKERFILE


def test_the_image_runs_tuner_as_a_user_without_rights_from_pinned_versions() -> None:
    instructions = re.findall(r"^([A-Z]+) (.+)$", DOCKERFILE, re.MULTILINE)

    assert [words for name, words in instructions if name == "USER"] == ["tuner"]
    assert [words for name, words in instructions if name == "ENTRYPOINT"] == ['["tuner"]']
    assert [words for name, words in instructions if name == "ARG"] == ["BASE=python:3.12-slim", 'EXTRAS=""']
    assert "pip install -c constraints.txt" in DOCKERFILE
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    copied = [words.split()[:-1] for name, words in instructions if name == "COPY"]
    assert {file for files in copied for file in files} == allowed
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert SERVICES["mlflow"]["build"]["args"]["EXTRAS"] in extras
    # The owner of a new named volume is that of the folder in the image.
    assert {"/artifacts", "/users", "/home/tuner/.cache"} <= set(re.findall(r"/[\w./]+", DOCKERFILE))


@pytest.mark.parametrize("service", OURS)
def test_commands_are_commands_of_ours(service: str) -> None:
    name, *words = SERVICES[service]["command"]

    shown = subprocess.run([sys.executable, "-m", "tuner", name, "--help"], capture_output=True, text=True, timeout=300)

    assert shown.returncode == 0, shown.stderr
    options = [word.partition("=")[0] for word in words if word.startswith("-")]
    assert [option for option in options if not re.search(rf"{option}\b", shown.stdout)] == []


def compose_command() -> list[str]:
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if shutil.which("docker"):
        answer = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=300)
        if answer.returncode == 0:
            return ["docker", "compose"]
    pytest.skip("neither docker-compose nor docker compose is installed (apt-get install docker-compose)")


def resolve(environment: Path) -> subprocess.CompletedProcess[str]:
    """Let compose read the file with these variables and no others."""
    return subprocess.run(
        [*compose_command(), "--file", str(ROOT / "docker-compose.yml"), "--env-file", str(environment), "config"],
        cwd=environment.parent,
        env={"PATH": os.environ["PATH"], "HOME": str(environment.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_compose_accepts_the_file_and_keeps_any_password(tmp_path: Path) -> None:
    password = NASTY.replace("'", "").replace("${c}", "")  # .env.example asks to leave these out
    example = (ROOT / ".env.example").read_text().splitlines()
    lines = [f"POSTGRES_PASSWORD='{password}'" if line.startswith("POSTGRES_PASSWORD=") else line for line in example]
    (tmp_path / "set.env").write_text("\n".join(lines))

    as_shipped = resolve(ROOT / ".env.example")
    changed = resolve(tmp_path / "set.env")

    assert as_shipped.returncode == 0, as_shipped.stderr
    assert set(yaml.safe_load(as_shipped.stdout)["services"]) == {"postgres", "worker", "dashboard", "mlflow"}
    assert changed.returncode == 0, changed.stderr
    resolved = yaml.safe_load(changed.stdout)["services"]
    assert resolved["worker"]["environment"]["PGPASSWORD"].replace("$$", "$") == password
    assert resolved["postgres"]["environment"]["POSTGRES_PASSWORD"].replace("$$", "$") == password
    assert resolved["worker"]["command"] == ["worker", "/studies/digits_mlp.py"]


@pytest.mark.parametrize("line", ["", "POSTGRES_PASSWORD=\n"])
def test_compose_refuses_to_start_without_a_password(tmp_path: Path, line: str) -> None:
    (tmp_path / "bare.env").write_text(f"STUDY_FILE=/studies/digits_mlp.py\n{line}")

    refused = resolve(tmp_path / "bare.env")

    assert refused.returncode != 0
    assert "set it in .env, see .env.example" in refused.stderr


def words_of(service: str, replaced: dict[str, str]) -> list[str]:
    """A service's command with our study and address in the places of its own."""
    words: list[str] = SERVICES[service]["command"]
    return [replaced.get(word, word) for word in words]


def check_health(test: list[str], tuner: Any, port: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a health check as Docker would, with this Python, against this port."""
    kind, program, *words = test
    assert (kind, program) == ("CMD", "python")
    if port is not None:
        words = [re.sub(r"(?<=127\.0\.0\.1:)\d+", str(port), word) for word in words]
    return subprocess.run(
        [sys.executable, *words], cwd=tuner.folder, env=tuner.env, capture_output=True, text=True, timeout=300
    )


def image_health_check() -> list[str]:
    found = re.search(r"^HEALTHCHECK .*\\\n\s+CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert found
    return ["CMD", *json.loads(found[1])]


@pytest.mark.slow
def test_the_services_commands_see_a_study_through(
    tuner_on_postgres: Any, tiny_study: Path, wait_until: Callable[..., Any]
) -> None:
    tuner = tuner_on_postgres
    command = words_of("worker", {"${STUDY_FILE:-/studies/digits_mlp.py}": str(tiny_study)})
    assert command == ["worker", str(tiny_study)]

    workers = [tuner.start(*command, TINY_EPOCHS="2") for _ in range(2)]
    printed = [worker.communicate(timeout=300)[0] for worker in workers]

    assert [worker.returncode for worker in workers] == [0, 0], printed
    trials = tuner.rows("trials", "tiny")
    assert [(row["number"], row["outcome"]) for row in trials] == [(number, "complete") for number in range(6)]
    best = tuner.rows("best", "tiny")
    assert [row["value"] for row in best] == [min(row["value"] for row in trials)]
    assert check_health(image_health_check(), tuner).returncode == 0

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    users = str(make_users(tuner.folder / "users"))
    command = words_of("dashboard", {"0.0.0.0": "127.0.0.1", "8080": str(port), "/users/dashboard": users})
    assert command == [
        *("dashboard", "--host", "127.0.0.1", "--port", str(port)),
        *("--behind-proxy", "--users", users),
    ]
    dashboard = tuner.start(*command)

    health = SERVICES["dashboard"]["healthcheck"]["test"]
    wait_until(lambda: dashboard.poll() is not None or is_listening(port))
    assert dashboard.poll() is None, dashboard.communicate()[0]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=300)
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/api/studies", headers={"Authorization": "Bearer ci"})
    with urllib.request.urlopen(asked, timeout=300) as answer:
        assert [study["study_name"] for study in json.load(answer)["study_summaries"]] == ["tiny"]
    assert check_health(health, tuner, port).returncode == 0

    dashboard.terminate()
    dashboard.wait(timeout=300)
    assert not is_listening(port)
    assert check_health(health, tuner, port).returncode != 0


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_password_of_any_characters_reaches_postgres_outside_the_url(
    tuner_on_postgres: Any, postgres_server: str
) -> None:
    if os.environ.get(databases.GIVEN):
        pytest.skip("changes the server's pg_hba.conf, which must be a file of this machine")
    tuner, role = tuner_on_postgres, "with_password"
    url = sqlalchemy.make_url(tuner.env["TUNER_STORAGE"])
    engine = sqlalchemy.create_engine(
        sqlalchemy.make_url(postgres_server).set(drivername="postgresql+psycopg2"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        rules = Path(connection.exec_driver_sql("SHOW hba_file").scalar_one())
        before = rules.read_text()
        literal = NASTY.replace("'", "''").replace("%", "%%")
        try:
            rules.write_text(f"local all {role} scram-sha-256\n{before}")
            connection.exec_driver_sql("SELECT pg_reload_conf()")
            connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{literal}'")
            # As in docker-compose.yml: a user, no password.
            tuner.env["TUNER_STORAGE"] = f"postgresql+psycopg2://{role}@/{url.database}?host={url.query['host']}"
            check = image_health_check()

            tuner.env["PGPASSWORD"] = NASTY
            right = check_health(check, tuner)
            tuner.env["PGPASSWORD"] = NASTY[:-1]
            wrong = check_health(check, tuner)
        finally:
            rules.write_text(before)
            connection.exec_driver_sql("SELECT pg_reload_conf()")
            connection.exec_driver_sql(f"DROP ROLE IF EXISTS {role}")
    engine.dispose()
    assert right.returncode == 0, right.stderr
    assert wrong.returncode != 0
    assert "password authentication failed" in wrong.stderr
