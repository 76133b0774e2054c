"""The manifests of Postgres and the dashboard in a cluster: what can be checked without one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml
from container_files import SERVICES
from kubernetes import client

from tuner.cli import app
from tuner.launch.engines.pods import URL_KEY

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "guide" / "kubernetes.md").read_text()
FILES = sorted((ROOT / "examples" / "kubernetes").glob("*.yaml"))
MANIFESTS: list[dict[str, Any]] = [one for file in FILES for one in yaml.safe_load_all(file.read_text())]
WORKLOADS = {one["metadata"]["name"]: one for one in MANIFESTS if "template" in one["spec"]}
KINDS = ["V1Service", "V1StatefulSet", "V1Deployment"]


def pod(name: str) -> dict[str, Any]:
    return WORKLOADS[name]["spec"]["template"]["spec"]


def container(name: str) -> dict[str, Any]:
    (only,) = pod(name)["containers"]
    return only


def references(node: Any, key: str) -> list[Any]:
    """Return what stands under a key anywhere in a tree."""
    inside = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    own = [node[key]] if isinstance(node, dict) and key in node else []
    return own + [found for child in inside for found in references(child, key)]


def test_there_are_postgres_and_the_dashboard_each_with_a_service() -> None:
    assert [(one["kind"], one["metadata"]["name"]) for one in MANIFESTS] == [
        ("Service", "tuner-dashboard"),
        ("Deployment", "tuner-dashboard"),
        ("Service", "tuner-postgres"),
        ("StatefulSet", "tuner-postgres"),
    ]
    for file in FILES:
        assert f"kubectl apply -f {file.relative_to(ROOT)}" in PAGE


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_manifests_fit_the_schemas_of_kubernetes(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_kubernetes_client_reads_them_and_loses_nothing(manifest: dict[str, Any]) -> None:
    api: Any = client.ApiClient(client.Configuration())
    read = api.deserialize(json.dumps(manifest), f"V1{manifest['kind']}", "application/json")
    assert api.sanitize_for_serialization(read) == manifest


@pytest.mark.parametrize("service", [one for one in MANIFESTS if one["kind"] == "Service"], ids=lambda one: one["kind"])
def test_services_find_their_pods_and_not_those_of_workers(service: dict[str, Any]) -> None:
    name = service["metadata"]["name"]
    labels = WORKLOADS[name]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == WORKLOADS[name]["spec"]["selector"]["matchLabels"] == labels
    assert labels["app.kubernetes.io/name"] == name, "the pods of workers have the name tuner"
    ports = {one["name"]: one["containerPort"] for one in container(name)["ports"]}
    for port in service["spec"]["ports"]:
        target = port.get("targetPort", port["port"])
        assert ports.get(target, target) in ports.values()


@pytest.mark.parametrize("name", WORKLOADS)
def test_pods_fit_the_restricted_standard_and_write_to_volumes_only(name: str) -> None:
    security, own = pod(name)["securityContext"], container(name)["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(name)["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod(name))
    resources = container(name)["resources"]
    assert {*resources["requests"]} == {"cpu", "memory"}
    assert {*resources["limits"]} == {"memory"}
    given = {one["name"] for one in pod(name)["volumes"]}
    given |= {one["metadata"]["name"] for one in WORKLOADS[name]["spec"].get("volumeClaimTemplates", [])}
    assert {one["name"] for one in container(name)["volumeMounts"]} == given
    assert "/tmp" in {one["mountPath"] for one in container(name)["volumeMounts"]}


def test_the_page_makes_the_secrets_and_the_script_that_they_use() -> None:
    commands = re.findall(r"(?m)^kubectl create (?:.*\\\n)*.*$", PAGE)
    made = {
        words[1]: set(re.findall(r"--from-(?:literal|file)=([\w-]+)=", command))
        for command in commands
        for words in [re.sub(r"^kubectl create secret generic", "secret", command).split()]
        if words[0] == "secret"
    }
    used = {one["name"]: set[str]() for one in references(MANIFESTS, "secretKeyRef")}
    for one in references(MANIFESTS, "secretKeyRef"):
        used[one["name"]].add(one["key"])
    assert used == {"tuner-database": {"postgres-password", "tuner-password", "mlflow-password", "url"}}
    assert used["tuner-database"] <= made["tuner-database"]
    assert URL_KEY in made["tuner-database"], "`tuner launch --on kubernetes --option secret=` reads it"
    assert references(MANIFESTS, "secretName") == ["tuner-dashboard"]
    assert made["tuner-dashboard"] == {"dashboard"}
    assert [one for one in references(MANIFESTS, "secretRef") if not one.get("optional")] == []
    (script,) = references(pod("tuner-postgres"), "configMap")
    assert f"kubectl create configmap {script['name']} --from-file=docker/postgres/roles.sh" in PAGE
    assert script["defaultMode"] & 0o111 == 0o111, "the image sources what it cannot run"


def test_postgres_is_that_of_the_containers() -> None:
    service, ours = SERVICES["postgres"], container("tuner-postgres")
    names = {one["name"] for one in ours["env"]}
    assert ours["image"] == service["image"]
    assert names == {*service["environment"], "PGDATA"}
    assert ours["readinessProbe"]["exec"]["command"] == service["healthcheck"]["test"][1:]
    mounted = {one["mountPath"] for one in ours["volumeMounts"]}
    assert mounted == {"/var/lib/postgresql/data", "/docker-entrypoint-initdb.d", "/var/run/postgresql", "/tmp"}
    (url,) = re.findall(r"--from-literal=url=(\S+)", PAGE[PAGE.index("## Postgres and") :])
    assert url.endswith(f"@{WORKLOADS['tuner-postgres']['spec']['serviceName']}/tuner")
    given = PAGE[PAGE.index("kubectl delete pvc") :].split()[3]
    (claim,) = WORKLOADS["tuner-postgres"]["spec"]["volumeClaimTemplates"]
    assert given == f"{claim['metadata']['name']}-tuner-postgres-0"


def test_the_dashboard_is_that_of_the_containers() -> None:
    ours, service = container("tuner-dashboard"), SERVICES["dashboard"]
    assert ours["command"] == ["python", "-m", "tuner"]
    assert ours["args"] == service["command"]
    commands: Any = typer.main.get_command(app)
    given = commands.commands["dashboard"].make_context("dashboard", ours["args"][1:]).params
    assert (given["host"], given["port"], given["behind_proxy"]) == ("0.0.0.0", 8080, True)
    (users,) = [one for one in ours["volumeMounts"] if one["name"] == "users"]
    assert str(given["users"]) == f"{users['mountPath']}/dashboard", "the key of the Secret is the file's name"
    probes = [ours[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert probes == [{"path": "/login", "port": "http"}] * 3
    assert ":8080/login" in service["healthcheck"]["test"][-1], "a test of the containers asks for this page"
