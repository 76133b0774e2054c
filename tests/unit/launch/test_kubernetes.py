"""What is submitted to Kubernetes, and what is asked of it: of a server on loopback that answers like its API."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_api import JOBS, PODS, SECRETS, KubernetesAPI, serving, write_kubeconfig

from tuner.errors import UsageError
from tuner.launch.engines import kubernetes
from tuner.launch.engines.engine import EngineError, Job, JobState, Part, job_name
from tuner.launch.engines.kubernetes import Kubernetes
from tuner.launch.engines.logs import Log, follow_logs, read_logs
from tuner.launch.engines.pod_log import PodLog

GOLDEN = Path(__file__).parent / "kubernetes_job.yaml"
URL = {"TUNER_STORAGE": "postgresql://me:secret@db/d"}
NAME = "tuner-a-study-dc76f8"
AT = f"lab/{NAME}"
ALL = {
    "image": "registry.example.org/tuner:1",
    "namespace": "lab",
    "env-secret": "s3",
    "service-account": "trainer",
    "queue": "gpus",
    "cpu": "4",
    "memory": "16Gi",
    "device": "google.com/tpu",
    "node-selector": "pool=gpu,example.org/zone=a",
    "toleration": "example.org/spot",
    "volume": "checkpoints:/artifacts",
}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(
        key="k",
        engine="kubernetes",
        study="A study",
        command=("python", "-m", "tuner", "worker", "studies/my study.py", "--artifacts=s3://bucket/$(x)"),
        folder=tmp_path,
        logs=tmp_path / "logs",
        devices_per_worker=0,
        options={"image": "registry.example.org/tuner:1"},
        launched_at_s=1.0,
    )


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesAPI]:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    for name in ("_ASK_S", "_END_S", "_STOP_S"):
        monkeypatch.setattr(kubernetes, name, 0.01)
    with serving(KubernetesAPI(), tmp_path / "kubeconfig") as api:
        yield api


def manifest(job: Job, workers: int = 3) -> Any:
    return yaml.safe_load(Kubernetes().script(job, workers))


def test_the_manifest_is_the_golden_one(job: Job) -> None:
    job = dataclasses.replace(job, options=ALL, devices_per_worker=2)
    assert Kubernetes().script(job, 3) == GOLDEN.read_text()


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("options", [ALL, {"image": "i"}, {"image": "i", "secret": "db"}])
def test_manifests_fit_the_schemas_of_kubernetes(job: Job, options: dict[str, str], version: str) -> None:
    made = manifest(dataclasses.replace(job, options=options, devices_per_worker=1))
    kubernetes_validate.validate(made, version, strict=True)


def test_without_options_nothing_is_asked_for(job: Job) -> None:
    made = manifest(job)
    pod = made["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert "namespace" not in made["metadata"]
    assert "completions" not in made["spec"]
    assert container["resources"] == {}
    assert [volume["name"] for volume in pod["volumes"]] == ["tmp"]
    assert container["command"][-1] == "--artifacts=s3://bucket/$$(x)", "Kubernetes replaces $(x) otherwise"
    assert pod["automountServiceAccountToken"] is False
    assert manifest(dataclasses.replace(job, devices_per_worker=2))["spec"]["template"]["spec"]["containers"][0][
        "resources"
    ] == {"limits": {"nvidia.com/gpu": "2"}}


@pytest.mark.parametrize("study", ["a", "Größe & Co.", "ßß", "-x-" * 40, "a" * 39 + "--b", "Ω"])
def test_names_are_labels_of_dns(job: Job, study: str) -> None:
    job = dataclasses.replace(job, study=study)
    name = job_name(job)
    assert re.fullmatch(r"tuner-[a-z0-9]([-a-z0-9]*[a-z0-9])?-[0-9a-f]{6}", name)
    assert len(name) <= 57, "pods add six characters, and a label has 63"
    others = [dataclasses.replace(job, launched_at_s=2.0), dataclasses.replace(job, parts=(Part("x/y", 0),))]
    assert len({name, *map(job_name, others)}) == 3
    assert name == job_name(dataclasses.replace(job, devices_per_worker=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "kubernetes needs the container image of the workers: pass `options` image=REGISTRY/NAME:TAG"),
        ({"image": "i", "imag": "x"}, "must be one of cpu, device, .*: got 'imag'; did you mean 'image'?"),
        ({"image": "two words"}, "the option 'image' must be an image such as .*: got 'two words'"),
        ({"image": "i", "memory": "16 GB"}, "the option 'memory' must be an amount such as 16Gi: got '16 GB'"),
        ({"image": "i", "cpu": ""}, "the option 'cpu' must be a number of cores such as 4 or 500m: got ''"),
        ({"image": "i", "namespace": "A"}, "'namespace' must be the name of a namespace"),
        ({"image": "i", "secret": "a\nb"}, r"'secret' must be the name of an object: .* got 'a\\nb'"),
        ({"image": "i", "device": "gpu"}, "'device' must be a resource such as nvidia.com/gpu"),
        ({"image": "i", "node-selector": "a"}, "'node-selector' must be KEY=VALUE, several separated by commas"),
        ({"image": "i", "volume": "claim:data"}, "'volume' must be CLAIM:/FOLDER"),
        ({"image": "i", "volume": "claim:/tmp"}, "'volume' must not be mounted on /tmp"),
    ],
)
def test_wrong_options_are_refused(job: Job, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Kubernetes().check(dataclasses.replace(job, options=options))


@pytest.mark.parametrize(
    ("artifacts", "volume", "message"),
    [
        ("/home/me/tuner-artifacts", None, "s3://BUCKET/PREFIX, or a folder in a volume, with `options` volume="),
        ("/artifacts-2/x", "claim:/artifacts", "s3://BUCKET/PREFIX, or a folder in /artifacts: got '/artifacts-2/x'"),
        ("/artifacts/x", "claim:/artifacts", None),
        ("gs://bucket", None, None),
    ],
)
def test_artifacts_must_be_where_all_pods_reach_them(
    job: Job, artifacts: str, volume: str | None, message: str | None
) -> None:
    options = {**job.options, **({"volume": volume} if volume else {})}
    job = dataclasses.replace(job, options=options, command=(*job.command[:-1], f"--artifacts={artifacts}"))
    if message is None:
        Kubernetes().check(job)
        return
    with pytest.raises(UsageError, match=f"`artifacts` must be where all pods can reach them: {re.escape(message)}"):
        Kubernetes().check(job)


@pytest.mark.slow
def test_the_url_is_only_in_a_secret_that_goes_with_the_job(job: Job, api: KubernetesAPI) -> None:
    submitted = Kubernetes().submit(job, 3, URL)

    assert submitted.parts == (Part(AT, 3),)
    assert submitted.name == f"kubernetes job {AT}"
    assert Job.from_json(json.loads(json.dumps(submitted.to_json()))) == submitted
    secret, made = api.objects[f"{SECRETS}/{NAME}"], api.objects[f"{JOBS}/{NAME}"]
    assert secret["stringData"] == {"url": URL["TUNER_STORAGE"]}
    assert secret["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": NAME, "uid": f"uid-{NAME}"}
    ]
    assert made["spec"] == manifest(job)["spec"]
    assert "me:secret" not in json.dumps(made)


@pytest.mark.slow
def test_a_given_secret_is_used_and_none_is_made(job: Job, api: KubernetesAPI) -> None:
    job = dataclasses.replace(job, options={**job.options, "secret": "database"})
    Kubernetes().submit(job, 3, URL)
    assert api.changes() == [("POST", "jobs")]
    (container,) = manifest(job)["spec"]["template"]["spec"]["containers"]
    assert container["env"][0]["valueFrom"] == {"secretKeyRef": {"key": "url", "name": "database"}}


def test_of_a_job_that_is_refused_nothing_stays(job: Job, api: KubernetesAPI) -> None:
    api.refused["POST", JOBS] = (403, 'jobs.batch is forbidden: exceeded quota\nin "lab"')
    expected = r'^Kubernetes does not create a Job: jobs.batch is forbidden: exceeded quota.*in "lab"$'
    with pytest.raises(EngineError, match=expected) as raised:
        Kubernetes().submit(job, 3, URL)
    assert "\n" not in str(raised.value)
    assert api.objects == {}


def test_a_job_of_others_with_the_same_name_stays(job: Job, api: KubernetesAPI) -> None:
    job = dataclasses.replace(job, options={**job.options, "secret": "database"})
    Kubernetes().submit(job, 3, URL)
    api.refused["POST", JOBS] = (409, f'jobs.batch "{NAME}" already exists')
    with pytest.raises(EngineError, match=r"Kubernetes does not create a Job: .* already exists"):
        Kubernetes().submit(job, 3, URL)
    assert f"{JOBS}/{NAME}" in api.objects


COMPLETE, FAILED = ({"conditions": [{"type": kind, "status": "True"}]} for kind in ("Complete", "Failed"))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, JobState(3, 0)),
        ({"active": 3, "ready": 1}, JobState(2, 1)),
        ({"active": 1, "ready": 1, "terminating": 2}, JobState(2, 3)),
        ({"active": 2, "ready": 2, "succeeded": 1}, JobState(0, 2)),
        ({"active": 0, "ready": 0, "succeeded": 1, "failed": 1}, JobState(0, 0, (0,))),
        ({**COMPLETE, "succeeded": 3}, JobState(0, 0, (0,))),
        ({**FAILED, "failed": 2}, JobState(0, 0, (3, 130))),
    ],
)
def test_states_are_counted(job: Job, api: KubernetesAPI, status: dict[str, Any], expected: JobState) -> None:
    submitted = Kubernetes().submit(job, 3, URL)
    api.objects[f"{JOBS}/{NAME}"]["status"] = status
    api.objects["pods"] = [pod(f"{NAME}-a", 3), pod(f"{NAME}-b", 130), pod(f"{NAME}-c", None), pod("x", 7, "other")]
    assert Kubernetes().state(submitted) == expected


def pod(name: str, code: int | None, job: str = NAME) -> Any:
    state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
    container = {"name": "worker", "image": "i", "imageID": "i", "ready": True, "restartCount": 0, "state": state}
    return {"metadata": {"name": name, "labels": {"job": job}}, "status": {"containerStatuses": [container]}}


def test_a_job_that_was_deleted_is_over(job: Job, api: KubernetesAPI) -> None:
    job = dataclasses.replace(job, parts=(Part(AT, 3),))
    assert Kubernetes().state(job) == JobState(0, 0)
    Kubernetes().cancel(job)
    assert api.changes() == []


def test_a_job_grows_and_shrinks_in_place(job: Job, api: KubernetesAPI) -> None:
    submitted = Kubernetes().submit(job, 3, URL)
    scaled = Kubernetes().scale(submitted, 8, URL)
    assert scaled.parts == (Part(AT, 8),)
    assert api.objects[f"{JOBS}/{NAME}"]["spec"]["parallelism"] == 8
    assert Kubernetes().scale(scaled, 0, URL).workers == 0
    assert f"{JOBS}/{NAME}" not in api.objects


def test_a_job_that_starts_no_pods_any_more_is_replaced(job: Job, api: KubernetesAPI) -> None:
    submitted = Kubernetes().submit(job, 3, URL)
    api.objects[f"{JOBS}/{NAME}"]["status"] = {**COMPLETE, "succeeded": 3}
    scaled = Kubernetes().scale(submitted, 4, URL)
    old, new = scaled.parts
    assert (old, new.workers) == (Part(AT, 0), 4)
    assert new.id != old.id
    assert scaled.name == f"kubernetes job {new.id}", "only what has workers"
    assert f"{JOBS}/{new.id.removeprefix('lab/')}" in api.objects
    assert f"{JOBS}/{NAME}" in api.objects, "its logs can still be read"


def test_a_job_that_is_finishing_shrinks_in_place(job: Job, api: KubernetesAPI) -> None:
    submitted = Kubernetes().submit(job, 3, URL)
    api.objects[f"{JOBS}/{NAME}"]["status"] = {"active": 2, "ready": 2, "succeeded": 1}
    api.asked.clear()
    assert Kubernetes().scale(submitted, 1, URL).parts == (Part(AT, 1),)
    assert api.changes() == [("PATCH", f"jobs/{NAME}")]


def test_workers_are_asked_to_stop_before_their_job_is_deleted(job: Job, api: KubernetesAPI) -> None:
    submitted = Kubernetes().submit(job, 3, URL)
    api.objects[f"{JOBS}/{NAME}"]["status"] = {"active": 3, "ready": 3}
    api.asked.clear()
    Kubernetes().cancel(submitted)
    assert api.changes() == [("PATCH", f"jobs/{NAME}"), ("DELETE", f"jobs/{NAME}")]


def test_a_job_that_has_ended_stays_with_its_logs(job: Job, api: KubernetesAPI) -> None:
    submitted = Kubernetes().submit(job, 3, URL)
    api.objects[f"{JOBS}/{NAME}"]["status"] = {**COMPLETE, "succeeded": 3}
    api.asked.clear()
    Kubernetes().cancel(submitted)
    assert api.changes() == []


def test_a_job_whose_last_pod_has_just_ended_is_left_to_complete(
    job: Job, api: KubernetesAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "_END_S", 60.0)
    submitted = Kubernetes().submit(job, 3, URL)
    path = f"{JOBS}/{NAME}"
    api.objects[path]["status"] = {"active": 0, "ready": 0, "succeeded": 3}
    api.asked.clear()
    answer = api.answer

    def complete_after_some_calls(method: str, target: str, body: Any) -> tuple[int, Any]:
        if len(api.asked) == 4:
            api.objects[path]["status"] |= COMPLETE
        return answer(method, target, body)

    monkeypatch.setattr(api, "answer", complete_after_some_calls)
    Kubernetes().cancel(submitted)
    assert api.changes() == []


def stamped(*lines: str, since: int = 0) -> list[str]:
    return [f"2026-01-01T00:00:00.{at:09}Z {line}\n" for at, line in enumerate(lines, since)]


def test_a_progress_bar_is_one_line_of_a_log(job: Job, api: KubernetesAPI) -> None:
    submitted = Kubernetes().submit(job, 3, URL)
    api.objects["pods"] = [pod("w1", 0)]
    api.logs["w1"] = stamped("start", "Epoch 0: 50%\rEpoch 1: 100%", "end")
    (log,) = Kubernetes().logs(submitted, [])
    assert list(log.lines()) == [b"start\n", b"Epoch 0: 50%\rEpoch 1: 100%\n", b"end\n"]


@pytest.mark.slow
def test_logs_are_of_pods_and_each_line_is_read_once(job: Job, api: KubernetesAPI) -> None:
    submitted = Kubernetes().submit(job, 3, URL)
    api.objects["pods"] = [pod("w1", 0), pod("w2", None), pod("w3", None)]
    api.logs |= {"w1": stamped("trial 1: starts", "trial 2: starts"), "w2": [*stamped("a", "b"), "2026-01-01T01 half"]}
    api.refused["GET", f"{PODS}/w3/log"] = (400, 'container "worker" is waiting to start: ContainerCreating')

    found = Kubernetes().logs(submitted, [])

    assert [log.name for log in found] == ["w1", "w2", "w3"]
    assert [log.name for log in Kubernetes().logs(submitted, ["w2", "w9"])] == ["w2"]
    assert list(read_logs([Log(log, True, None) for log in found])) == [
        "w1: trial 1: starts",
        "w1: trial 2: starts",
        "w2: a",
        "w2: b",
    ]
    assert list(read_logs([Log(log, False, 2) for log in Kubernetes().logs(submitted, ["w1"])])) == ["trial 2: starts"]
    api.logs["w2"] = stamped("b", "c", since=1)
    assert list(found[1].lines()) == [b"c\n"]
    del api.logs["w2"]
    assert list(found[1].lines()) == [], "of a pod that is gone"


def test_logs_of_new_pods_are_followed(job: Job, api: KubernetesAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PodLog, "poll_s", 0.01)
    submitted = Kubernetes().submit(job, 3, URL)
    api.objects["pods"], api.logs = [pod("w1", None)], {"w1": stamped("a"), "w2": stamped("b")}

    lines = follow_logs(lambda: [Log(log, True, None) for log in Kubernetes().logs(submitted, [])])

    assert next(lines) == "w1: a"
    api.objects["pods"].append(pod("w2", None))
    assert next(lines) == "w2: b"
    api.logs["w1"] = stamped("a", "c")
    assert next(lines) == "w1: c"


def test_a_machine_without_the_client_is_told(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    expected = r"the client of Kubernetes is not installed: run `pip install -e '.\[kubernetes\]'`"
    with pytest.raises(UsageError, match=expected):
        Kubernetes().check(job)
    job = dataclasses.replace(job, parts=(Part(AT, 1),))
    for call in (Kubernetes().cancel, Kubernetes().state):
        with pytest.raises(EngineError, match=expected):
            call(job)


def test_only_a_given_secret_may_have_another_url_than_this_machine(job: Job) -> None:
    assert Kubernetes().passes_url(job)
    assert not Kubernetes().passes_url(dataclasses.replace(job, options={"image": "i", "secret": "db"}))


def test_a_machine_without_a_cluster_is_told(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(EngineError, match=r"^no cluster is configured: set KUBECONFIG, or write ~/\.kube/config"):
        Kubernetes().submit(job, 1, URL)


def test_a_cluster_that_does_not_answer_is_told(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:9")
    expected = "^cannot reach the Kubernetes API at http://127.0.0.1:9: .*Connection refused"
    with pytest.raises(EngineError, match=expected) as raised:
        Kubernetes().state(dataclasses.replace(job, parts=(Part(AT, 1),)))
    assert "\n" not in str(raised.value)


def test_the_manifest_of_a_worker_on_several_hosts_fits_the_schema() -> None:
    page = (Path(__file__).parents[3] / "docs/guide/several-hosts.md").read_text()
    service, made = yaml.safe_load_all(page.partition("```yaml\n")[2].partition("```")[0])
    for manifest in (service, made):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    pod, name = made["spec"]["template"]["spec"], made["metadata"]["name"]
    assert service["metadata"]["name"] == pod["subdomain"] == service["spec"]["selector"]["job-name"] == name
    (container,) = pod["containers"]
    assert container["args"] == [f"--coordinator={name}-0.{name}:7000", "--rank=$(JOB_COMPLETION_INDEX)"]
    assert made["spec"]["completions"] == made["spec"]["parallelism"] == 2
    assert "--hosts=2" in container["command"]


def test_several_hosts_are_refused(job: Job) -> None:
    with pytest.raises(UsageError, match=r"`hosts_per_worker` works with `on` slurm only: got 2 with kubernetes"):
        Kubernetes().check(dataclasses.replace(job, hosts_per_worker=2))
