"""The container files: what can be checked without Docker. `test_compose_services.py` runs the services' commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_words import check_words
from container_files import (
    COMPOSE,
    COMPOSE_TEXT,
    DOCKERFILE,
    EXAMPLE,
    NASTY,
    ROOT,
    SERVICES,
    MissingVariable,
    example_variables,
    instructions,
    interpolate,
    texts,
)

OURS = [name for name, service in SERVICES.items() if "build" in service and name != "mlflow"]
"""Services whose command is one of tuner."""
WORKERS = ["worker", "gpu"]
PASSWORDS = ["POSTGRES_PASSWORD", "TUNER_DB_PASSWORD", "MLFLOW_DB_PASSWORD", "TUNER_DASHBOARD_PASSWORD"]
GIVEN = {**example_variables(), **dict.fromkeys(PASSWORDS, "a password")}
PAGE = (ROOT / "docs" / "guide" / "containers.md").read_text()


def mounts(service: str) -> dict[str, tuple[str, bool]]:
    """Return what a service mounts: the source by target, and whether it is read-only."""
    found = (volume.split(":") for volume in interpolate(SERVICES[service].get("volumes", []), GIVEN))
    return {target: (source, mode == ["ro"]) for source, target, *mode in found}


# --- The compose file


def test_the_file_has_the_form_of_the_compose_specification() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if "No module named" in checked.stderr:
        pytest.skip("check-jsonschema is not installed (pip install -e '.[dev]')")

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_plain_start_has_only_the_database_workers_and_the_dashboard() -> None:
    profiles = {name: service.get("profiles") for name, service in SERVICES.items()}

    assert profiles == {
        "postgres": None,
        "worker": None,
        "dashboard": None,
        "gpu": ["gpu"],
        "mlflow": ["mlflow"],
        "track": ["mlflow"],
        "tuner": ["tools"],
    }


def test_ports_are_published_on_loopback_alone() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert published == {"dashboard": ["127.0.0.1:8080:8080"], "mlflow": ["127.0.0.1:5000:5000"]}
    assert not [name for name, service in SERVICES.items() if "network_mode" in service]


@pytest.mark.parametrize("name", PASSWORDS)
def test_a_missing_password_is_one_clear_line(name: str) -> None:
    assert name in example_variables()
    assert example_variables()[name] == "", "an example that works would be used in production"
    assert interpolate(COMPOSE, GIVEN)
    with pytest.raises(MissingVariable, match=rf"^{name}: set it in .env, see .env.example$"):
        interpolate(COMPOSE, {**GIVEN, name: ""})


def test_passwords_reach_their_services_alone_and_unchanged() -> None:
    given = {**GIVEN, **{name: f"{name} {NASTY}" for name in PASSWORDS}}
    services = interpolate(SERVICES, given)
    found = {
        (service, key): name
        for service, settings in services.items()
        for key, value in settings["environment"].items()
        for name in PASSWORDS
        if value == given[name]
    }

    assert found == {
        ("postgres", "POSTGRES_PASSWORD"): "POSTGRES_PASSWORD",
        ("postgres", "TUNER_DB_PASSWORD"): "TUNER_DB_PASSWORD",
        ("postgres", "MLFLOW_DB_PASSWORD"): "MLFLOW_DB_PASSWORD",
        **{(service, "PGPASSWORD"): "TUNER_DB_PASSWORD" for service in OURS},
        ("mlflow", "PGPASSWORD"): "MLFLOW_DB_PASSWORD",
        ("dashboard", "TUNER_DASHBOARD_PASSWORD"): "TUNER_DASHBOARD_PASSWORD",
    }
    elsewhere = [text for text in texts(services) if NASTY in text]
    assert len(elsewhere) == len(found), "in no command, URL or argument of a build"


def test_services_use_roles_that_are_not_the_superuser() -> None:
    superuser = SERVICES["postgres"]["environment"]["POSTGRES_USER"]
    urls = {name: [text for text in texts(service) if "postgresql+" in text] for name, service in SERVICES.items()}

    assert superuser == "postgres"
    assert {name: found for name, found in urls.items() if found} == {
        **{name: ["postgresql+psycopg2://tuner@postgres/tuner"] for name in OURS},
        "mlflow": ["--backend-store-uri=postgresql+psycopg2://mlflow@postgres/mlflow"],
    }


def test_variables_are_described_and_files_with_secrets_stay_out() -> None:
    used = set(re.findall(r"\$\{(\w+)", COMPOSE_TEXT))
    described = set(re.findall(r"(?m)^(?:# )?(\w+)=", EXAMPLE))

    assert used - {"GIT_COMMIT"} == described - {"COMPOSE_PROFILES"}
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


@pytest.mark.parametrize("service", SERVICES)
def test_containers_have_no_rights_of_root(service: str) -> None:
    settings = SERVICES[service]

    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert settings["init"] is True
    assert not {"privileged", "pid", "ipc", "cap_add", "devices"} & set(settings)
    if service == "postgres":
        assert settings["user"] == "postgres"
    else:
        assert "user" not in settings, "the image's user, which is not root"
        assert settings["read_only"] is True
        assert settings["tmpfs"] == ["/tmp"]


@pytest.mark.parametrize("service", WORKERS)
def test_workers_can_be_scaled_stop_in_order_and_restart_by_their_exit_status(service: str) -> None:
    worker = SERVICES[service]

    assert not {"container_name", "ports", "hostname"} & set(worker)
    assert worker["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert worker["entrypoint"] == ["python", "/opt/tuner/run_worker.py"]
    assert worker["restart"] == "no"  # the script restarts by exit status, which a policy of Docker cannot
    assert (worker["stop_signal"], worker["stop_grace_period"]) == ("SIGTERM", "60s")


def test_restart_policies_fit_what_runs_until_it_is_stopped_and_what_ends() -> None:
    policies = {name: service["restart"] for name, service in SERVICES.items()}

    assert policies == {
        **dict.fromkeys(("postgres", "dashboard", "mlflow"), "unless-stopped"),
        **dict.fromkeys((*WORKERS, "tuner"), "no"),
        "track": "on-failure",
    }


def test_studies_data_checkpoints_and_cache_are_mounted() -> None:
    expected = {
        "/studies": ("./studies", True),
        "/data": ("./data", True),
        "/checkpoints": ("checkpoints", False),
        "/home/tuner/.cache": ("cache", False),
    }

    assert mounts("worker") == mounts("gpu") == expected
    assert mounts("tuner") == {**expected, "/users": ("users", False)}
    assert mounts("dashboard") == {"/users": ("users", False), "/checkpoints": ("checkpoints", True)}
    assert mounts("track") == {"/studies": ("./studies", True), "/checkpoints": ("checkpoints", True)}
    assert mounts("mlflow") == {"/artifacts": ("artifacts", False)}
    assert {SERVICES[service]["environment"]["TUNER_ARTIFACTS"] for service in OURS} == {"/checkpoints"}
    moved = {"TUNER_STUDIES": "/home/ann/studies", "TUNER_DATA": "/mnt/data"}
    moved_mounts = interpolate(SERVICES["worker"]["volumes"], {**GIVEN, **moved})
    assert moved_mounts[:2] == ["/home/ann/studies:/studies:ro", "/mnt/data:/data:ro"]


def test_volumes_are_declared_and_folders_exist() -> None:
    sources = {source for service in SERVICES for source, _ in mounts(service).values()}

    assert {name for name in sources if not name.startswith(".")} == set(COMPOSE["volumes"])
    assert all((ROOT / name).is_dir() for name in sources if name.startswith("."))
    ignored = subprocess.run(["git", "check-ignore", "--no-index", "data/set.npz"], cwd=ROOT, capture_output=True)
    assert ignored.returncode in (0, 128)  # 128: not a clone


def test_the_gpu_service_gets_all_nvidia_devices_and_an_image_for_them() -> None:
    gpu = interpolate(SERVICES["gpu"], GIVEN)

    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert gpu["build"]["args"]["EXTRAS"] == "cuda"
    assert gpu["command"] == ["launch", "/studies/digits_mlp.py", "--no-live"]
    assert interpolate(SERVICES["worker"], {**GIVEN, "TUNER_CPU_WORKERS": "0"})["scale"] == "0"
    assert not [name for name in SERVICES if name != "gpu" and "deploy" in SERVICES[name]]


def test_tracking_follows_the_study_once_mlflow_is_up() -> None:
    track = interpolate(SERVICES["track"], GIVEN)

    assert track["command"] == ["track", "digits_mlp"]
    assert track["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert track["depends_on"] == {name: {"condition": "service_healthy"} for name in ("postgres", "mlflow")}
    study = (ROOT / "studies" / Path(GIVEN["STUDY_FILE"]).name).read_text()
    assert f'name="{GIVEN["STUDY_NAME"]}"' in study


def test_every_image_is_built_with_the_studies_and_their_commit() -> None:
    given = {**GIVEN, "GIT_COMMIT": "c", "TUNER_STUDIES": "/home/ann/studies"}
    builds = {name: interpolate(SERVICES[name]["build"], given) for name in [*OURS, "mlflow"]}

    extras = {"mlflow": "mlflow", "track": "mlflow", "gpu": "cuda"}
    assert builds == {
        name: {
            "context": ".",
            "additional_contexts": {"studies": "/home/ann/studies"},
            "args": {"EXTRAS": extras.get(name, ""), "GIT_COMMIT": "c"},
        }
        for name in builds
    }
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.values()) <= set(known)


def test_every_service_has_a_health_check() -> None:
    without = [name for name, service in SERVICES.items() if "healthcheck" not in service]

    assert without == ["worker", "gpu", "tuner", "track"]  # they have the image's
    assert "\nHEALTHCHECK " in DOCKERFILE


@pytest.mark.slow
@pytest.mark.parametrize("service", OURS)
def test_commands_are_commands_of_ours(service: str) -> None:
    name, *words = SERVICES[service]["command"]

    shown = subprocess.run([sys.executable, "-m", "tuner", name, "--help"], capture_output=True, text=True, timeout=300)

    assert shown.returncode == 0, shown.stderr
    options = [word.partition("=")[0] for word in words if word.startswith("-")]
    assert [option for option in options if not re.search(rf"{option}\b", shown.stdout)] == []


# --- The image


def test_the_image_runs_tuner_as_a_user_without_rights_from_pinned_versions() -> None:
    found = instructions()

    assert [words for name, words in found if name == "USER"] == ["1000"]
    assert "useradd --create-home --uid 1000 tuner" in DOCKERFILE
    assert [words for name, words in found if name == "ENTRYPOINT"] == ['["tuner"]']
    assert [words for name, words in found if name == "ARG"] == [
        "BASE=python:3.12-slim", 'EXTRAS=""', 'GIT_COMMIT=""',
    ]  # fmt: skip
    installs = [words for name, words in found if name == "RUN" and "pip install" in words]
    assert [re.search(r"pip install (-\S+)", words)[1] for words in installs] == ["-c", "-c", "--no-deps"]
    after = [name for name, _ in found[[name for name, _ in found].index("USER") :]]
    assert not {"RUN", "COPY", "USER"} & set(after[1:]), "the image's files belong to root"
    # The owner of a new named volume is that of the folder in the image.
    (made,) = (words for name, words in found if "install --directory --owner=tuner" in words)
    volumes = {target for service in OURS for target, (source, _) in mounts(service).items() if source[0] not in "./"}
    assert volumes | {"/artifacts"} <= set(re.findall(r"/[\w./]+", made))


def test_the_image_gets_only_files_that_it_copies() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in ignored if line[0] == "!"}
    copied = [words.split()[:-1] for name, words in instructions() if name == "COPY" and "--from" not in words]

    assert {file for files in copied for file in files} == allowed
    assert all((ROOT / name).exists() for name in allowed)


def test_the_folder_of_studies_can_be_replaced_and_is_not_in_the_image() -> None:
    found = instructions()
    stages = [words for name, words in found if name == "FROM"]

    assert stages == ["scratch AS studies", "${BASE} AS requirements", "${BASE}"]
    last = found[max(place for place, (name, _) in enumerate(found) if name == "FROM") :]
    assert not [words for name, words in last if name == "COPY" and "studies" in words]
    assert [words for name, words in last if "--from=requirements" in words] == [
        "--from=requirements /requirements.txt ./"
    ]
    mounted = [words for name, words in found if name == "RUN" and "type=bind,from=studies,target=/studies" in words]
    assert len(mounted) == 2


def test_the_record_of_the_commit_is_where_workers_look() -> None:
    from tuner.study.git_record import RECORD_VARIABLE

    (place,) = (words for name, words in instructions() if name == "ENV" and RECORD_VARIABLE in words)
    assert place == f"{RECORD_VARIABLE}=/opt/tuner/git.json"
    (recorded,) = (words for name, words in instructions() if "record_git.py /studies" in words)
    assert recorded.endswith('record_git.py /studies "${GIT_COMMIT}" > "${TUNER_GIT_RECORD}"')


# --- The page


def docker_commands() -> list[str]:
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```$", PAGE)
    lines = [re.sub(r"\s+# .*$", "", line) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("docker ")]


def test_commands_of_the_page_name_services_and_commands_that_exist() -> None:
    assert len(docker_commands()) > 20
    flags = {"up", "build", "run", "exec", "stop", "down", "logs", "ps"}
    for command in docker_commands():
        words = shlex.split(command.partition(" < ")[0].partition(" > ")[0])
        if words[:2] != ["docker", "compose"]:
            assert words[:3] == ["docker", "volume", "rm"], command
            continue
        action, *rest = words[2:]
        assert action in flags, command
        if action not in ("run", "exec"):
            named = [word for word in rest if not word.startswith("-") and "=" not in word]
            assert set(named) <= set(SERVICES), command
            continue
        while rest[0].startswith("-"):
            rest = rest[2:] if rest[0] == "--entrypoint" else rest[1:]
        service, *arguments = rest
        assert service in SERVICES, command
        if "--entrypoint" not in command and service in ("tuner", "track"):
            check_words("docs/guide/containers.md", arguments)
        elif arguments[:1] == ["tuner"]:
            check_words("docs/guide/containers.md", arguments[1:])


def test_the_page_names_the_command_that_tests_of_the_record_run() -> None:
    described = "git -C studies describe --always --dirty --abbrev=40 --exclude='*'"

    assert set(re.findall(r"(?m)^export GIT_COMMIT=.*$", PAGE)) == {f"export GIT_COMMIT=$({described})"}
    tests = (ROOT / "tests" / "unit" / "study" / "test_git_record.py").read_text()
    words = re.search(r"DESCRIBE = (\[.*\])", tests)
    assert words
    assert yaml.safe_load(words[1]) == shlex.split(described)[3:]


# --- With Docker's own command, where there is one


def resolve(environment: Path) -> subprocess.CompletedProcess[str]:
    """Let compose read the file with these variables and no others."""
    version = subprocess.run(["sh", "-c", "docker compose version"], capture_output=True, timeout=300)
    if version.returncode != 0:
        pytest.skip("docker compose is not installed")
    return subprocess.run(
        ["docker", "compose", "--file", str(ROOT / "docker-compose.yml"), "--env-file", str(environment), "config"],
        cwd=environment.parent,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_compose_accepts_the_file_and_keeps_any_password(tmp_path: Path) -> None:
    password = NASTY.replace("'", "")  # .env.example asks to leave it out
    lines = [f"{line}'{password}'" if line.endswith("_PASSWORD=") else line for line in EXAMPLE.splitlines()]
    (tmp_path / "set.env").write_text("\n".join(lines))

    resolved = resolve(tmp_path / "set.env")
    refused = resolve(ROOT / ".env.example")

    assert resolved.returncode == 0, resolved.stderr
    services: dict[str, Any] = yaml.safe_load(resolved.stdout)["services"]
    assert set(services) == {"postgres", "worker", "dashboard"}
    assert services["worker"]["environment"]["PGPASSWORD"].replace("$$", "$") == password
    assert services["worker"]["command"] == ["worker", "/studies/digits_mlp.py"]
    assert refused.returncode != 0
    assert "set it in .env, see .env.example" in refused.stderr
