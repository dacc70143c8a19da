"""The manifests of deploy/kubernetes as kustomize renders them, and what pods and network policies in them mean."""

import base64
import functools
import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
TOOLS = ROOT / ".venv/.tools/bin"
POD_OWNERS = ("Deployment", "StatefulSet", "Job")
NAME = "app.kubernetes.io/name"

Manifest = dict[str, Any]
Labels = Mapping[str, str]


@functools.cache
def render(directory: str) -> str:
    """Return what `kubectl apply --kustomize` would apply, for a directory of deploy/kubernetes."""
    command = [str(TOOLS / "kubectl"), "kustomize", str(KUBERNETES / directory)]
    rendered = subprocess.run(command, capture_output=True, text=True, check=False)
    assert rendered.returncode == 0, rendered.stderr
    return rendered.stdout


@dataclass(frozen=True)
class Manifests:
    """The resources of a directory of deploy/kubernetes."""

    resources: list[Manifest]

    @classmethod
    def of(cls, directory: str) -> "Manifests":
        """Render a directory."""
        return cls(list(yaml.load_all(render(directory), yaml.CSafeLoader)))

    def of_kind(self, *kinds: str) -> Iterator[Manifest]:
        """The resources of these kinds."""
        return (one for one in self.resources if one["kind"] in kinds)

    def find(self, kind: str, name: str) -> Manifest:
        """The resource of this kind and name."""
        (found,) = (one for one in self.of_kind(kind) if one["metadata"]["name"] == name)
        return found

    def pods(self) -> dict[str, Manifest]:
        """The templates of all pods, by the name of what starts them."""
        return {one["metadata"]["name"]: one["spec"]["template"] for one in self.of_kind(*POD_OWNERS)}

    def environment(self, container: Manifest) -> dict[str, str]:
        """The variables of a container, those of its maps included."""
        merged: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            merged |= self.find("ConfigMap", source["configMapRef"]["name"])["data"]
        return merged | {one["name"]: one["value"] for one in container.get("env", ())}

    def allows(self, sender: Labels, receiver: Labels, port: int) -> bool:
        """Return whether the policies let a pod of this namespace open a connection to another one."""
        policies = [one["spec"] for one in self.of_kind("NetworkPolicy")]
        sends = any(_allows(policy, "Egress", sender, receiver, port) for policy in policies)
        return sends and any(_allows(policy, "Ingress", receiver, sender, port) for policy in policies)

    def admits(self, namespace: Labels, receiver: Labels, port: int) -> bool:
        """Return whether the policies let the pods of another namespace, with these labels, connect to a pod."""
        return any(
            _takes_port(rule, port) and any(_is_namespace(peer, namespace) for peer in rule["from"])
            for policy in self.of_kind("NetworkPolicy")
            if _selects(policy["spec"]["podSelector"], receiver)
            for rule in policy["spec"].get("ingress", ())
        )

    def leaves(self, sender: Labels) -> bool:
        """Return whether the policies let a pod connect to addresses outside of the cluster."""
        return any(
            "to" not in rule or any("ipBlock" in peer for peer in rule["to"])
            for policy in self.of_kind("NetworkPolicy")
            if _selects(policy["spec"]["podSelector"], sender)
            for rule in policy["spec"].get("egress", ())
        )


def containers(pod: Manifest) -> list[Manifest]:
    """The containers of a pod, those that run first included."""
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def secret_files(pod: Manifest, container: Manifest, secrets: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The files of secrets that a container sees, by path, with their content."""
    volumes = {volume["name"]: volume["secret"] for volume in pod["spec"]["volumes"] if "secret" in volume}
    files: dict[str, str] = {}
    for mount in container.get("volumeMounts", ()):
        if volume := volumes.get(mount["name"]):
            content = secrets[volume["secretName"]]
            items = volume.get("items") or [{"key": key, "path": key} for key in content]
            files |= {f"{mount['mountPath']}/{item['path']}": content[item["key"]] for item in items}
    return files


def read_secrets(directory: Path) -> dict[str, dict[str, str]]:
    """The content of each key of the Secrets that `create_secrets.py` wrote to a directory."""
    document = json.loads((directory / "secrets.yaml").read_text())
    return {
        item["metadata"]["name"]: {key: base64.b64decode(value).decode() for key, value in item["data"].items()}
        for item in document["items"]
    }


def _allows(policy: Manifest, direction: str, own: Labels, peer: Labels, port: int) -> bool:
    rules: Iterable[Manifest] = policy.get(direction.lower(), ())
    peers = "to" if direction == "Egress" else "from"
    return _selects(policy["podSelector"], own) and any(
        _takes_port(rule, port) and any(_is_pod(one, peer) for one in rule.get(peers, ())) for rule in rules
    )


def _takes_port(rule: Manifest, port: int) -> bool:
    return any(one.get("port", port) == port for one in rule["ports"])


def _is_pod(peer: Manifest, labels: Labels) -> bool:
    return "namespaceSelector" not in peer and "podSelector" in peer and _selects(peer["podSelector"], labels)


def _is_namespace(peer: Manifest, labels: Labels) -> bool:
    return "namespaceSelector" in peer and _selects(peer["namespaceSelector"], labels)


def _selects(selector: Manifest, labels: Labels) -> bool:
    matched = selector.get("matchLabels", {}).items() <= labels.items()
    expressions = selector.get("matchExpressions", ())
    assert all(one["operator"] == "In" for one in expressions)
    return matched and all(labels.get(one["key"]) in one["values"] for one in expressions)
