"""cluster/: against Ray's and Kubernetes' own schemas, elsewhere by structure, and this project's configuration."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

from configs.load import load_config
from configs.placement import compare, placement

CLUSTER = Path(__file__).parents[2] / "cluster"
ROOT = CLUSTER.parent


def read(name):
    return yaml.safe_load((CLUSTER / name).read_text())


def groups(cluster):
    """Group name -> worker group of a RayCluster's spec."""
    return {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def assert_is_a_cluster(spec):
    """What the KubeRay CRD demands of a RayCluster's spec, and no key that its v1 version does not know."""
    assert spec.keys() == {"rayVersion", "enableInTreeAutoscaling", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    assert tuple(int(part) for part in spec["rayVersion"].split(".")) >= (2, 52, 0), "the first with tokens"
    assert spec["authOptions"] == {"mode": "token"}, "for the operator and the submitter too, which ask the dashboard"
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head.keys() == {"rayStartParams", "template"}
    for group in workers:
        assert group.keys() == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (head, *workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert pod.keys() == {"containers", "volumes", "securityContext"}
        dockerfile = (CLUSTER / "Dockerfile").read_text()
        assert f"--uid {pod['securityContext']['fsGroup']} " in dockerfile, "the image's user writes the runs"
        [container] = pod["containers"]
        assert container.keys() == {"name", "image", "env", "resources", "volumeMounts"}
        assert container["resources"]["requests"] == container["resources"]["limits"], "Ray sizes a node by its limits"
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert not any(name.startswith("RAY_AUTH") for name in environment), "the operator's to set"
        assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60
    assert groups(spec).keys() == {"learner", "rollout"}
    for name, group in groups(spec).items():
        assert json.loads(json.loads(group["rayStartParams"]["resources"])) == {f"{name}_node": 1}


def test_ray_up_fits_rays_schema():
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = read("ray-up.yaml")
    jsonschema.validate(config, schema)
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert types["learner"]["resources"]["learner_node"] == types["rollout"]["resources"]["rollout_node"] == 1
    started = " ".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    [token] = config["file_mounts"]
    assert (
        token == re.search(r"^WORKDIR (/home/\S+)", (CLUSTER / "Dockerfile").read_text(), re.M)[1] + "/.ray/auth_token"
    )
    assert started.count("RAY_AUTH_MODE=token") == 2 and "--dashboard-host=127.0.0.1" in started


def test_raycluster():
    manifest = read("raycluster.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    assert_is_a_cluster(manifest["spec"])


def test_rayjob_starts_a_run_that_this_project_accepts():
    manifest = read("rayjob.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    spec = dict(manifest["spec"])
    assert_is_a_cluster(spec.pop("rayClusterSpec"))
    assert spec.keys() == {
        "entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
    }  # fmt: skip
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
    words = shlex.split(spec["entrypoint"])
    assert words[:6] == ["python", "-m", "learner.main", "--config", "sd15_spo", "--resume"]
    config = load_config("sd15_spo", words[7:])
    assert_nodes_hold(config, pods(manifest["spec"]["rayClusterSpec"]))


def pods(spec):
    """Kind of node -> what all of its nodes have together, as Ray counts it, of a RayCluster's spec."""
    found = {}
    for name, group in groups(spec).items():
        [container] = group["template"]["spec"]["containers"]
        limits, count = container["resources"]["limits"], group["replicas"]
        found[f"{name}_node"] = {"CPU": count * int(limits["cpu"]), "GPU": count * int(limits["nvidia.com/gpu"])}
    return found


def assert_nodes_hold(config, nodes):
    """Each role is pinned to a kind of node, and that kind has what all of its roles ask for at the start."""
    kinds = {}
    for role in placement(config):
        if role.role != "control":
            [kind] = role.custom
            kinds.setdefault(kind, []).append(role)
    assert {kind: {role.role for role in roles} for kind, roles in kinds.items()} == {
        "learner_node": {"learner rank"}, "rollout_node": {"rollout worker", "evaluator"},
    }  # fmt: skip
    for kind, roles in kinds.items():
        assert compare(roles, {**nodes[kind], kind: 1}) == []


def pinned(text):
    """The preset that the walk-through submits, with the pins that `text` has."""
    return load_config("sd15_spo", re.findall(r"\S+\.custom\.\w+_node=[\d.]+", text))


def test_other_clusters_hold_the_pinned_preset_too():
    config = pinned((CLUSTER / "README.md").read_text())
    assert_nodes_hold(config, pods(read("raycluster.yaml")["spec"]))
    types = read("ray-up.yaml")["available_node_types"].values()
    nodes = {kind: node for node in types for kind in node["resources"] if kind.endswith("_node")}
    assert_nodes_hold(config, {
        kind: {name: node["min_workers"] * node["resources"][name] for name in ("CPU", "GPU")}
        for kind, node in nodes.items()
    })  # fmt: skip
    slurm = (CLUSTER / "slurm.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --(\S+)=(\d+)$", slurm, re.M))
    others = int(options["nodes"]) - 1
    each = {"CPU": int(options["cpus-per-task"]), "GPU": int(options["gpus-per-node"])}
    rest = {name: others * amount for name, amount in each.items()}
    assert_nodes_hold(pinned(slurm), {"learner_node": each, "rollout_node": rest})


def pod_templates(spec):
    """Of a RayCluster's spec, as objects of their own."""
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": group["template"]}


def test_pods_fit_kubernetes_schema_and_a_misspelt_key_does_not():
    oldest = re.search(r"Kubernetes (1\.\d+) or newer", (CLUSTER / "raycluster.yaml").read_text())[1]
    for version in (oldest, kubernetes_validate.latest_version()):
        for pod in pod_templates(read("raycluster.yaml")["spec"]):
            kubernetes_validate.validate(pod, version, strict=True)
    [container] = pod["template"]["spec"]["containers"]
    container["imag"] = container.pop("image")
    with pytest.raises(kubernetes_validate.ValidationError, match="imag"):
        kubernetes_validate.validate(pod, version, strict=True)


def test_both_kuberay_manifests_have_the_same_cluster():
    assert read("rayjob.yaml")["spec"]["rayClusterSpec"] == read("raycluster.yaml")["spec"]


def test_the_slurm_script_is_valid_and_leaves_time_to_save():
    subprocess.run(["bash", "-n", CLUSTER / "slurm.sh"], check=True, timeout=60)
    text = (CLUSTER / "slurm.sh").read_text()
    seconds = int(re.search(r"#SBATCH --signal=B:TERM@(\d+)", text)[1])
    assert seconds >= 120 and "#SBATCH --requeue" in text and "RAY_AUTH_MODE=token" in text


def test_the_image_copies_what_the_packages_need():
    copied = set(re.findall(r"^COPY (\S+)", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE))
    assert {"configs", "reward", "rollout", "learner", "pyproject.toml"} <= copied
    assert all((ROOT / name).exists() for name in copied)


def test_uploads_leave_out_environments_and_runs():
    ignored = (ROOT / ".rayignore").read_text().split()
    assert {".venv/", "runs/", ".git"} <= set(ignored)
    assert {".venv", "runs"} <= set(read("runtime-env.yaml")["excludes"])


@pytest.mark.parametrize("file", sorted(path.name for path in CLUSTER.iterdir() if path.name != "README.md"))
def test_the_walk_through_names_every_file(file):
    assert file in (CLUSTER / "README.md").read_text()
