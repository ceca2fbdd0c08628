"""The image, the manifests and the runbook hold what they say."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BINARIES = pathlib.Path(sys.executable).parent
KUSTOMIZE = DEPLOY / "kustomize"
RESOURCES = yaml.safe_load((KUSTOMIZE / "kustomization.yaml").read_text())["resources"]
BUILD = pathlib.Path(os.environ.get("FQ_BUILD", ROOT / "build/release"))
UNITS = {"Mi": 1 << 20, "Gi": 1 << 30, "MiB": 1 << 20, "GiB": 1 << 30}


def run(*command: str | pathlib.Path) -> subprocess.CompletedProcess:
    """With both outputs as one text."""
    return subprocess.run([str(c) for c in command], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)


def validate(path: pathlib.Path) -> subprocess.CompletedProcess:
    return run(BINARIES / "kubernetes-validate", "--strict", path)


def size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()
    return int(number) * UNITS[unit]


@pytest.fixture(scope="module")
def pod() -> dict:
    return yaml.safe_load((KUSTOMIZE / "deployment.yaml").read_text())["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def node(pod) -> dict:
    return next(c for c in pod["initContainers"] if c["name"] == "flashquant")


def test_dockerfile_passes_hadolint():
    result = run(BINARIES / "hadolint", "--failure-threshold", "style", DEPLOY / "Dockerfile")
    assert (result.returncode, result.stdout) == (0, "")


def test_kustomization_lists_every_manifest():
    manifests = {p.name for p in KUSTOMIZE.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(RESOURCES) == manifests


@pytest.mark.parametrize("name", RESOURCES)
def test_manifest_fits_the_kubernetes_schema(name):
    result = validate(KUSTOMIZE / name)
    assert result.returncode == 0, result.stdout


def test_schema_check_is_strict(tmp_path):
    path = tmp_path / "service.yaml"
    path.write_text((KUSTOMIZE / "service.yaml").read_text() + "  selektor: {}\n")
    result = validate(path)
    assert result.returncode != 0 and "selektor" in result.stdout


def test_pod_meets_the_restricted_standard(pod):
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert not any("hostPath" in volume for volume in pod["volumes"])
    for container in [*pod["initContainers"], *pod["containers"]]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]


def test_node_is_a_native_sidecar_on_shared_memory(pod, node):
    assert node["restartPolicy"] == "Always"
    volume = next(v for v in pod["volumes"] if v["name"] == "flashquant")
    assert volume["emptyDir"]["medium"] == "Memory" and volume["emptyDir"]["sizeLimit"]
    for container in [node, *pod["containers"]]:
        paths = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == "flashquant"]
        assert paths == ["/run/flashquant"]


def test_memory_limit_leaves_room_beside_the_slabs(node):
    host_bytes = next(a for a in node["args"] if a.startswith("--host-bytes=")).split("=")[1]
    assert size(node["resources"]["limits"]["memory"]) >= size(host_bytes) + (1 << 30)


def test_node_takes_the_arguments_of_the_manifest(node):
    result = run(BUILD / "bin/flashquantd", *node["args"], "--print-config")
    assert result.returncode == 0, result.stdout
    assert "host-bytes" in result.stdout


def packages_with_dependencies(names: list[str]) -> set[str]:
    """`names` and all they depend on, as installed here."""
    listing = run("dpkg-query", "-W", "-f", "${Package}\t${Depends}\n").stdout
    depends = {}
    for line in listing.splitlines():
        package, _, text = line.partition("\t")
        depends[package] = re.findall(r"(?:^|[,|]\s*)([a-z0-9][a-z0-9.+-]*)", text)
    seen, queue = set(), list(names)
    while queue:
        name = queue.pop()
        if name not in seen:
            seen.add(name)
            queue += depends.get(name, [])
    return seen


@pytest.mark.parametrize("binary", ["flashquantd", "fqctl"])
def test_image_holds_every_library_of(binary):
    stage = (DEPLOY / "Dockerfile").read_text().rsplit("FROM ", 1)[1]
    listed = re.findall(r"^ +(lib[a-z0-9.+-]+) \\$", stage, re.MULTILINE)
    there = packages_with_dependencies(listed)
    libraries = re.findall(r"=> (/\S+)", run("ldd", BUILD / "bin" / binary).stdout)
    assert libraries
    real = [str(pathlib.Path(path).resolve()) for path in libraries]
    # dpkg knows a file by the path it was packed with, which may lack /usr.
    owners = run("dpkg", "-S", *real, *(path.removeprefix("/usr") for path in real)).stdout
    pairs = re.findall(r"^([a-z0-9.+-]+)(?::\w+)?: (?:/usr)?(/.*)$", owners, re.MULTILINE)
    owner_of = {path: package for package, path in pairs}
    for path in real:
        package = owner_of.get(path.removeprefix("/usr"))
        assert package in there, f"{path} is of {package}, which the image does not install"
