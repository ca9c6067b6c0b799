"""Manifests for KubeRay: schema, policy, equal bytes everywhere, and refusals."""

from __future__ import annotations

import base64
import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from render_tools import CHECK, IMAGE, ROOT, crds, load, request_of, target, working_directory
from shipped import CONFIGS, RECIPES, SUITES

from orchestrator.errors import BadInput
from orchestrator.launch.base import JobRequest, Package, Pods
from orchestrator.launch.render_kuberay import MAX_PACKAGE_BYTES, job_name, render, to_yaml, with_command

Manifests = list[dict[str, Any]]
GOLDEN = ROOT / "tests" / "golden" / "render"
SHARED_POLICY = ROOT.parent / "shared" / "kubernetes" / "policy.py"
COMPARISONS = [CONFIGS / name / "compare.yaml" for name in ("quickstart", "8b", "70b")]


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return working_directory(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def schemas() -> Mapping[tuple[str, str], Any]:
    folder = crds()
    if folder is None:
        pytest.skip("KubeRay's CRDs are not here: set RLHF_CRDS to a directory that has them as JSON")
    found: Mapping[tuple[str, str], Any] = CHECK.load_schemas(folder)
    return found


@pytest.fixture(scope="module")
def cache() -> dict[str, Manifests]:
    return {}


@pytest.fixture
def rendered(
    where: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: dict[str, Manifests]
) -> Callable[..., Manifests]:
    monkeypatch.chdir(where)

    def rendered(recipe: str, **settings: Any) -> Manifests:
        key = f"{recipe} {settings}"
        if key not in cache:
            on = target(**settings)
            cache[key] = render(request_of(recipe, where, tmp_path, on), on)
        return copy.deepcopy(cache[key])

    return rendered


def relative(path: Path) -> str:
    return str(Path("configs") / path.relative_to(CONFIGS))


def job_of(manifests: Manifests) -> dict[str, Any]:
    return next(each for each in manifests if each["kind"] == "RayJob")


def templates(manifests: Manifests) -> Sequence[dict[str, Any]]:
    cluster = job_of(manifests)["spec"]["rayClusterSpec"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


# ------------------------------------------------------------------------------------------------ every recipe


@pytest.mark.parametrize("recipe", [relative(path) for path in (*RECIPES, *COMPARISONS, *SUITES)])
def test_every_recipe_passes_the_policy(recipe: str, rendered: Callable[..., Manifests]) -> None:
    manifests = rendered(recipe)
    assert list(CHECK.violations(manifests)) == []
    assert list(yaml.safe_load_all(to_yaml(manifests))) == manifests


@pytest.mark.parametrize("recipe", [relative(path) for path in (*RECIPES, *COMPARISONS, *SUITES)])
def test_every_recipe_has_the_schema_of_kuberay(
    recipe: str, rendered: Callable[..., Manifests], schemas: Mapping[tuple[str, str], Any]
) -> None:
    assert ("ray.io/v1", "RayJob") in schemas
    manifests = rendered(recipe)
    assert list(CHECK.schema_errors(manifests, schemas)) == []


@pytest.mark.parametrize("recipe", [relative(path) for path in RECIPES])
def test_every_recipe_passes_the_other_policy(recipe: str, rendered: Callable[..., Manifests]) -> None:
    """Check with a policy that others wrote, which knows no comparisons."""
    policy = load(SHARED_POLICY) if SHARED_POLICY.is_file() else pytest.skip(f"{SHARED_POLICY} is not here")
    assert list(policy.problems(job_of(rendered(recipe)))) == []


def test_a_recipe_without_gpus_has_one_worker(rendered: Callable[..., Manifests]) -> None:
    [group] = job_of(rendered("configs/quickstart/grpo.yaml", gpu="CPU"))["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == 1
    assert group["rayStartParams"].keys() == {"num-cpus", "object-store-memory"}
    assert "nvidia.com/gpu" not in group["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_misspelt_keys_and_wrong_types_have_no_schema(
    rendered: Callable[..., Manifests], schemas: Mapping[tuple[str, str], Any]
) -> None:
    manifests = rendered("configs/8b/ppo.yaml", **FULL)
    assert list(CHECK.schema_errors(manifests, schemas)) == []
    job_of(manifests)["spec"]["entrypont"] = "x"
    job_of(manifests)["spec"]["backoffLimit"] = "three"
    assert len(list(CHECK.schema_errors(manifests, schemas))) == 2


def test_core_kinds_have_the_schema_of_kubernetes(rendered: Callable[..., Manifests]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate, 108 MB")
    for manifest in rendered("configs/quickstart/grpo.yaml", egress=("10.0.0.0/8",)):
        if manifest["kind"] != "RayJob":
            validator.validate(manifest, "1.34", strict=True)


# ------------------------------------------------------------------------------------------------ mutations


def _spec(manifests: Manifests) -> dict[str, Any]:
    spec: dict[str, Any] = job_of(manifests)["spec"]
    return spec


def _cluster(manifests: Manifests) -> dict[str, Any]:
    cluster: dict[str, Any] = _spec(manifests)["rayClusterSpec"]
    return cluster


def _head(manifests: Manifests) -> dict[str, Any]:
    pod: dict[str, Any] = _cluster(manifests)["headGroupSpec"]["template"]["spec"]
    return pod


def _worker(manifests: Manifests) -> dict[str, Any]:
    pod: dict[str, Any] = _cluster(manifests)["workerGroupSpecs"][0]["template"]["spec"]
    return pod


def _container(manifests: Manifests) -> dict[str, Any]:
    container: dict[str, Any] = _worker(manifests)["containers"][0]
    return container


def _many_groups(manifests: Manifests) -> None:
    group = _cluster(manifests)["workerGroupSpecs"][0]
    _cluster(manifests)["workerGroupSpecs"] = [{**copy.deepcopy(group), "groupName": f"w{i}"} for i in range(18)]


def _unlimited(manifests: Manifests) -> None:
    resources = _container(manifests)["resources"]
    resources["requests"] = {**resources["requests"], "memory": "1Gi"}


MUTATIONS: Mapping[str, Callable[[Manifests], Any]] = dict(
    zip(
        CHECK.POINTS,
        (
            lambda m: _cluster(m)["authOptions"].update(mode="disabled"),
            lambda m: _cluster(m).pop("rayVersion"),
            lambda m: _cluster(m).update(rayVersion="2.55.1"),
            lambda m: _cluster(m)["authOptions"].update(enableK8sTokenAuth=True),
            lambda m: job_of(m)["metadata"].update(name="rlhf-" + "x" * 43),
            lambda m: _spec(m).pop("shutdownAfterJobFinishes"),
            lambda m: _spec(m).update(suspend=False),
            lambda m: _spec(m).update(submitterConfig={"backoffLimit": 2}),
            lambda m: _head(m).update(restartPolicy="Always"),
            lambda m: _spec(m).update(backoffLimit=0),
            lambda m: _spec(m).update(entrypoint=_spec(m)["entrypoint"].replace("--attempts 5", "")),
            lambda m: _spec(m).pop("preRunningDeadlineSeconds"),
            lambda m: _spec(m).update(runtimeEnvYAML="env_vars: {WANDB_API_KEY: abc}"),
            _many_groups,
            lambda m: _cluster(m)["headGroupSpec"]["rayStartParams"].pop("num-cpus"),
            lambda m: _cluster(m)["workerGroupSpecs"][0].update(minReplicas=0),
            lambda m: _worker(m).pop("automountServiceAccountToken"),
            lambda m: _worker(m)["securityContext"].pop("runAsNonRoot"),
            lambda m: _worker(m)["securityContext"].pop("seccompProfile"),
            lambda m: _worker(m).update(terminationGracePeriodSeconds=30),
            lambda m: _worker(m).update(hostNetwork=True),
            lambda m: _worker(m)["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
            lambda m: next(v for v in _worker(m)["volumes"] if v["name"] == "shm").update(emptyDir={}),
            lambda m: _container(m)["securityContext"].update(allowPrivilegeEscalation=True),
            lambda m: _container(m)["securityContext"].pop("readOnlyRootFilesystem"),
            lambda m: _container(m)["securityContext"].pop("capabilities"),
            lambda m: _container(m).update(image="registry.example/rlhf:latest"),
            _unlimited,
            lambda m: _container(m)["env"].append({"name": "WANDB_API_KEY", "value": "abc"}),
            lambda m: m.remove(next(each for each in m if each["kind"] == "NetworkPolicy")),
        ),
        strict=True,
    )
)


def test_the_policy_has_thirty_points() -> None:
    assert len(MUTATIONS) == 30


@pytest.mark.parametrize("point", MUTATIONS)
def test_a_mutation_is_caught_at_its_point(point: str, rendered: Callable[..., Manifests]) -> None:
    manifests = rendered("configs/8b/dpo.yaml", queue="team-a")
    MUTATIONS[point](manifests)
    assert {rule for rule, _ in CHECK.violations(manifests)} == {point}


@pytest.mark.parametrize("point", MUTATIONS)
def test_a_mutation_is_caught_by_the_other_policy(
    point: str, rendered: Callable[..., Manifests], tmp_path: Path
) -> None:
    if not SHARED_POLICY.is_file():
        pytest.skip(f"{SHARED_POLICY} is not here")
    manifests = rendered("configs/8b/dpo.yaml", queue="team-a")
    MUTATIONS[point](manifests)
    file = tmp_path / "mutated.yaml"
    file.write_text(to_yaml(manifests))
    done = subprocess.run([sys.executable, SHARED_POLICY, file], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout


# ------------------------------------------------------------------------------------------------ equal bytes


def _command(where: Path, environment: Mapping[str, str]) -> bytes:
    command = [sys.executable, "-m", "orchestrator.cli", "render", "kuberay", "configs/quickstart/iterative_dpo.yaml"]
    done = subprocess.run(
        [*command, "--gpus", "8xH100", "--image", IMAGE],
        cwd=where,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_bytes_are_equal_on_every_machine(where: Path, tmp_path: Path) -> None:
    here = _command(where, {"HOME": str(tmp_path), "PYTHONHASHSEED": "1", "TZ": "UTC", "LANG": "C.UTF-8"})
    elsewhere = shutil.copytree(where, tmp_path / "another place" / "clone")
    for file in elsewhere.rglob("*"):
        os.utime(file, (1e9, 1e9))
    there = {"HOME": "/nowhere", "USER": "eve", "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LANG": "C", "HOSTNAME": "x"}
    assert _command(elsewhere, there) == here
    assert b"kind: RayJob" in here


def test_rendering_loads_neither_ray_nor_torch(where: Path) -> None:
    script = (
        "import sys; from orchestrator.cli.main import main; "
        f"code = main(['render', 'kuberay', 'configs/8b/grpo.yaml', '--image', '{IMAGE}']); "
        "sys.exit(code or sorted({'ray', 'torch', 'vllm', 'transformers', 'deepspeed'} & set(sys.modules)) or 0)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


FULL = {
    "queue": "team-a",
    "priority_class": "research",
    "gpu": "H100",
    "node_selector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    "tolerations": ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),
    "resources": {"rdma/hca": "1"},
    "image_pull_secret": "registry",
    "egress": ("10.0.0.0/8",),
    "secrets": {"HF_TOKEN": "rlhf-hub/token", "WANDB_API_KEY": "rlhf-wandb/key"},
}


RECIPE = """stages:
  - name: base
    model: {path: Qwen/Qwen3-8B}
    data: {dataset: data/demonstrations.jsonl}
    algorithm: {type: sft, learning_rate: 1.0e-5, batch_size: 64, max_steps: 100}
    policy: {num_ranks: 8}
  - name: arith
    model: {from_stage: base}
    data: {prompts: data/prompts.jsonl}
    reward: [{type: function, function: "reward.py:exact"}]
    rollout: {num_engines: 4, tensor_parallel_size: 2, max_prompt_length: 512, max_completion_length: 1024}
    algorithm: {type: grpo, max_steps: 100, prompts_per_step: 64, num_generations: 8, learning_rate: 1.0e-6}
    policy: {num_ranks: 8}
"""


@pytest.fixture
def own_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "own"
    (folder / "data").mkdir(parents=True)
    (folder / "arith.yaml").write_text(RECIPE)
    (folder / "reward.py").write_text("def exact(completions, **_):\n    return [0.0 for _ in completions]\n")
    (folder / "data" / "demonstrations.jsonl").write_text('{"prompt": "1 + 1", "completion": "2"}\n')
    (folder / "data" / "prompts.jsonl").write_text('{"prompt": "2 + 2\\u00e9"}\n')
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(("name", "settings"), [("kuberay", {}), ("kuberay_every_setting", FULL)])
def test_golden_files(name: str, settings: dict[str, Any], own_recipe: Path, tmp_path: Path) -> None:
    """Compare with the golden text of a name. `RLHF_WRITE_GOLDEN=1` writes it instead, for review in the diff."""
    on, path = target(**settings), GOLDEN / f"{name}.yaml"
    text = to_yaml(render(request_of("arith.yaml", own_recipe, tmp_path / "into", on), on))
    if os.environ.get("RLHF_WRITE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


# ------------------------------------------------------------------------------------------------ parts


def test_names_have_the_form_that_kubernetes_asks_for() -> None:
    assert job_name("rlhf-arith-1a2b3c4d") == "rlhf-arith-1a2b3c4d"
    assert job_name("rlhf-arith-1a2b3c4d", 2) == "rlhf-arith-1a2b3c4d-2"
    long = "rlhf-" + "A.b_c" * 13 + "-1a2b3c4d"
    for id in (long, "rlhf-UPPER-1a2b3c4d", "rlhf-a.b-1a2b3c4d", f"{long}x"):
        name = job_name(id, 99)
        assert len(name) <= 47
        assert name == name.lower()
        assert name.replace("-", "").isalnum()
    assert len({job_name(id) for id in (long, f"{long}x", "rlhf-a.b-1a2b3c4d", "rlhf-a-b-1a2b3c4d")}) == 4


def test_pods_ask_the_run_to_save_before_they_end(rendered: Callable[..., Manifests]) -> None:
    manifests = rendered("configs/quickstart/grpo.yaml")
    directories = ["/runs/quickstart-base", "/runs/quickstart-grpo"]
    for template in templates(manifests):
        pod = template["spec"]
        [container] = pod["containers"]
        hook = container["lifecycle"]["preStop"]["exec"]["command"]
        assert hook == ["rlhf", "entry", "preempt", *directories, "--wait", "540"]
        assert pod["terminationGracePeriodSeconds"] == 600
        assert {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "600"} in container["env"]


def test_the_whole_package_is_there_in_every_pod(
    where: Path, tmp_path: Path, rendered: Callable[..., Manifests]
) -> None:
    manifests = rendered("configs/quickstart/grpo.yaml")
    config_map = manifests[0]
    contents = {key: text.encode() for key, text in config_map["data"].items()}
    contents |= {key: base64.b64decode(text) for key, text in config_map.get("binaryData", {}).items()}
    for template in templates(manifests):
        volume = next(v for v in template["spec"]["volumes"] if v["name"] == "package-source")
        files = {item["path"].removeprefix("files/"): contents[item["key"]] for item in volume["configMap"]["items"]}
        assert "configs/quickstart/task.py" in files
        assert "data/quickstart/prompts.jsonl" in files
        assert all((where / path).read_bytes() == content for path, content in files.items())
        [copying] = template["spec"]["initContainers"]
        assert copying["command"] == ["cp", "-RL", "/package-source/files/.", "/package"]


def test_the_package_is_copied_from_what_kubernetes_mounts(tmp_path: Path, rendered: Callable[..., Manifests]) -> None:
    """Check the command on a mount like those of Kubernetes: links to a directory that each pod names differently."""
    source, package = tmp_path / "source", tmp_path / "package"
    (source / "..2026_11_30" / "files" / "configs").mkdir(parents=True)
    (source / "..2026_11_30" / "files" / ".hidden").write_text("h")
    (source / "..2026_11_30" / "files" / "configs" / "a.yaml").write_text("name: a\n")
    (source / "..data").symlink_to("..2026_11_30")
    (source / "files").symlink_to("..data/files")
    package.mkdir()
    [copying] = templates(rendered("configs/8b/dpo.yaml"))[0]["spec"]["initContainers"]
    places = {"/package-source": str(source), "/package": str(package)}
    words = [re.sub(r"^/package(-source)?(?=/|$)", lambda m: places[m[0]], word) for word in copying["command"]]
    subprocess.run(words, check=True)
    assert (package / "configs" / "a.yaml").resolve() == package / "configs" / "a.yaml"
    assert {str(p.relative_to(package)) for p in package.rglob("*")} == {".hidden", "configs", "configs/a.yaml"}


def test_binary_files_and_equal_keys_survive(tmp_path: Path) -> None:
    contents = {"a/b": b"one\n", "a_b": b"two\n", "tab": b"a\tb\n", "bin": bytes(range(256)), "crlf": b"a\r\nb"}
    for path, content in contents.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    package = Package(root=tmp_path, files=dict.fromkeys(contents, ""), bytes=300, digest="d")
    manifests = list(yaml.safe_load_all(to_yaml(render(_request(package=package), target()))))
    texts, binaries = manifests[0]["data"], manifests[0]["binaryData"]
    found = {key: text.encode() for key, text in texts.items()}
    found |= {key: base64.b64decode(text) for key, text in binaries.items()}
    items = next(v for v in templates(manifests)[0]["spec"]["volumes"] if v["name"] == "package-source")["configMap"][
        "items"
    ]
    assert {item["path"].removeprefix("files/"): found[item["key"]] for item in items} == contents


def test_secrets_are_files_and_their_values_are_nowhere(rendered: Callable[..., Manifests]) -> None:
    manifests = rendered("configs/8b/ppo.yaml", secrets=FULL["secrets"])
    for template in templates(manifests):
        volume = next(v for v in template["spec"]["volumes"] if v["name"] == "secrets")
        assert [source["secret"]["name"] for source in volume["projected"]["sources"]] == ["rlhf-hub", "rlhf-wandb"]
        names = {variable["name"] for variable in template["spec"]["containers"][0]["env"]}
        assert names & {"HF_TOKEN", "HF_TOKEN_PATH", "WANDB_API_KEY"} == {"HF_TOKEN_PATH"}
    words = shlex.split(job_of(manifests)["spec"]["entrypoint"])
    at = words.index("secrets")
    assert words[at - 2 : at + 3] == ["rlhf", "entry", "secrets", "WANDB_API_KEY=/secrets/WANDB_API_KEY", "--"]


def _request(**changes: Any) -> JobRequest:
    pods = Pods(role="worker", count=1, gpus=1, cpus=4, memory_gib=32, shm_gib=8)
    request = JobRequest(
        id="rlhf-a-1a2b3c4d",
        run="a",
        command=("rlhf", "run", "--attempts", "5"),
        directories=("/runs/a",),
        pods=(pods,),
    )
    return replace(request, **changes)


def test_the_shell_of_kuberay_hands_arguments_on_unchanged() -> None:
    command = ("rlhf", "run", "a b.yaml", "data.prompts=[x, 'y']", 'note=$HOME $(id) `id`; #"')
    entry = job_of(render(_request(command=command), target()))["spec"]["entrypoint"]
    assert "$(" not in entry.replace("$$(", "")  # Kubernetes would replace it, and makes $( of $$(
    shown = subprocess.run(
        ["bash", "-ce", f"printf '%s\\0' {entry.replace('$$(', '$(')} ;"], capture_output=True, text=True, check=True
    ).stdout
    assert tuple(shown.split("\0")[-len(command) - 1 : -1]) == command


def test_a_job_that_goes_on_keeps_its_place_and_runs_another_command() -> None:
    job = job_of(render(_request(secrets={"A": "b/c"}), target(queue="team-a")))
    again = with_command(job, "rlhf-a-1a2b3c4d-2", ["rlhf", "resume", "/runs/a", "note=$(x)"], backoff_limit=3)
    before = shlex.join(["rlhf", "run", "--attempts", "5"])
    assert again["spec"]["entrypoint"] == job["spec"]["entrypoint"].replace(before, "rlhf resume /runs/a 'note=$$(x)'")
    assert again["metadata"]["annotations"]["rlhf.dev/id"] == "rlhf-a-1a2b3c4d-2"
    assert json.dumps(again).count('"value": "rlhf-a-1a2b3c4d-2"') == 2  # RLHF_JOB of the head and of the workers


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({}, {"image": "rlhf:latest"}, "image rlhf:latest has no digest"),
        ({}, {"volume_claim": None}, "there is no shared volume"),
        ({"directories": ("/home/a/runs/x",)}, {}, "/home/a/runs/x is not on the volume"),
        ({"pods": ()}, {}, "the job names no pods"),
        ({"priority": 3}, {}, "priority 3"),
        ({"secrets": {"A": "/run/secrets/a"}}, {}, "secret A = /run/secrets/a"),
    ],
)
def test_what_the_target_cannot_take_is_refused(changes: dict[str, Any], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as caught:
        render(_request(**changes), target(**settings))
    [problem] = caught.value.problems
    assert problem.what == words
    assert problem.fix


def test_a_large_package_is_refused_with_the_way_out(tmp_path: Path) -> None:
    package = Package(root=tmp_path, files={}, bytes=MAX_PACKAGE_BYTES + 1, digest="d")
    with pytest.raises(BadInput) as caught:
        render(_request(package=package), target())
    [problem] = caught.value.problems
    assert (problem.what, problem.why) == ("the recipe's files have 901 KiB", "a ConfigMap holds 900 KiB")
    assert "/runs/data/prompts.jsonl" in problem.fix


# ------------------------------------------------------------------------------------------------ kustomize

DEPLOY = ROOT / "deploy" / "kuberay"


def _kustomize(folder: Path) -> Manifests:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


@pytest.mark.parametrize("overlay", ["8b", "70b"])
def test_an_overlay_is_what_the_renderer_prints(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    generate = load(DEPLOY / "generate.py")
    expected = generate.job(generate.OVERLAYS[overlay])
    assert generate.place(overlay).read_text().partition("\n")[2] == expected, "run make kuberay"
    jobs = [each for each in _kustomize(DEPLOY / "overlays" / overlay) if each["kind"] == "RayJob"]
    assert jobs == [each for each in yaml.safe_load_all(expected) if each["kind"] == "RayJob"]


@pytest.mark.parametrize("overlay", ["8b", "70b"])
def test_an_overlay_passes_schema_and_policy(overlay: str, schemas: Mapping[tuple[str, str], Any]) -> None:
    manifests = _kustomize(DEPLOY / "overlays" / overlay)
    assert [*CHECK.violations(manifests), *CHECK.schema_errors(manifests, schemas)] == []
    assert {each["metadata"].get("namespace") for each in manifests if each["kind"] != "Namespace"} == {"rlhf"}


def test_an_overlay_takes_another_image_in_one_place(tmp_path: Path) -> None:
    copied = shutil.copytree(DEPLOY, tmp_path / "kuberay")
    file = copied / "overlays" / "8b" / "kustomization.yaml"
    text = file.read_text().replace("sha256:" + "0" * 64, "sha256:" + "a" * 64)
    file.write_text(text.replace("newName: registry.example/rlhf", "newName: ghcr.example/team/rlhf"))
    images = {
        container["image"]
        for template in templates(_kustomize(file.parent))
        for container in (*template["spec"]["initContainers"], *template["spec"]["containers"])
    }
    assert images == {"ghcr.example/team/rlhf@sha256:" + "a" * 64}
