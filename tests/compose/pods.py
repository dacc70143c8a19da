"""Runs pods of rendered manifests as containers of Docker, with what the manifests say of them, for want of a kubelet.

Each container gets its image, command, environment, user, limits, read-only file system, secrets and volumes. A pod's
containers share a network, by which its Services find it. What needs a cluster is left out: policies, scheduling,
accounts, and the kubelet's own acts, such as restarts.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from tests.compose.stack import IMAGE, ROOT
from tests.support.manifests import Manifest, Manifests, secret_files

LABEL = "ordersaga.kubernetes-tests"
NETWORK = "ordersaga-kubernetes-tests"
OUR_IMAGE = "ordersaga"
GIVEN_USERS = ("rabbitmq",)
"""Images whose user may have another number than the public one: it runs as the user of this name that it has."""


class DockerError(AssertionError):
    """A command of Docker failed; the message ends with its output."""


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one command of Docker. Raises DockerError when it fails, unless `check` is false."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=1200)
    if check and done.returncode != 0:
        raise DockerError(
            f"docker {' '.join(arguments)} exited with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}"
        )
    return done


class Pods:
    """The pods that run, and the Secrets that they are given."""

    def __init__(self, manifests: Manifests, secrets: Mapping[str, Mapping[str, str]], directory: Path) -> None:
        """Files of secrets are written below `directory`."""
        self._manifests = manifests
        self._secrets = secrets
        self._directory = directory
        self._pods = manifests.pods()

    def start(self, name: str) -> None:
        """Start the containers of a pod; those that run first must end first."""
        pod = self._pods[name]
        for container in pod["spec"].get("initContainers", ()):
            docker("run", "--rm", *self._options(name, container, network="none"), *_words(container))
        network = NETWORK
        for container in pod["spec"]["containers"]:
            docker(
                "run",
                "--detach",
                "--name",
                self.container(name, container["name"]),
                *self._options(name, container, network),
                *_words(container),
            )
            network = f"container:{self.container(name, pod['spec']['containers'][0]['name'])}"

    def run_job(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run the pod of a job once."""
        (container,) = self._pods[name]["spec"]["containers"]
        return docker("run", "--rm", *self._options(name, container, NETWORK), *_words(container), check=False)

    def stop(self, name: str) -> int:
        """End a pod as the kubelet does, after its pause; return the exit status of its first container."""
        spec = self._pods[name]["spec"]
        container = self.container(name, spec["containers"][0]["name"])
        docker("stop", "--time", str(spec["terminationGracePeriodSeconds"]), container)
        return int(docker("inspect", "--format", "{{.State.ExitCode}}", container).stdout)

    def execute(self, name: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the first container of a pod, like `kubectl exec`."""
        return docker(
            "exec", self.container(name, self._pods[name]["spec"]["containers"][0]["name"]), *command, check=check
        )

    def container(self, pod: str, container: str) -> str:
        """The name of a container in Docker."""
        return f"{NETWORK}-{pod}-{container}"

    def url(self, name: str) -> str:
        """The URL of a service at its container's address, as the kubelet and Prometheus use it."""
        (container,) = self._pods[name]["spec"]["containers"]
        inspected = json.loads(docker("inspect", self.container(name, container["name"])).stdout)[0]
        address = inspected["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
        return f"http://{address}:{container['ports'][0]['containerPort']}"

    def probe(self, name: str, kind: str) -> str | None:
        """Send a probe of a service; return why it fails, or None."""
        (container,) = self._pods[name]["spec"]["containers"]
        probe = container[f"{kind}Probe"]
        try:
            answer = httpx.get(f"{self.url(name)}{probe['httpGet']['path']}", timeout=probe["timeoutSeconds"])
        except httpx.HTTPError as error:
            return f"{name}: {error!r}"
        return None if answer.is_success else f"{name}: {answer.status_code} {answer.text}"

    def logs(self, lines: int = 10) -> str:
        """The last lines of every container's log."""
        names = docker("ps", "--all", "--filter", f"label={LABEL}", "--format", "{{.Names}}").stdout.split()
        printed = ((name, docker("logs", "--tail", str(lines), name, check=False)) for name in names)
        shown = (f"--- {name}\n{done.stdout}{done.stderr}" for name, done in printed)
        return "\n".join(line[:300] for text in shown for line in text.splitlines())

    def _options(self, name: str, container: Manifest, network: str) -> list[str]:
        pod = self._pods[name]["spec"]
        context = pod["securityContext"] | container["securityContext"]
        limits = container["resources"]["limits"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        options = ["--label", LABEL, "--network", network, "--cap-drop", "ALL"]
        options += [
            "--security-opt",
            "no-new-privileges",
            *(["--read-only"] if context["readOnlyRootFilesystem"] else []),
        ]
        options += ["--user", _user(container, context), "--group-add", str(pod["securityContext"]["fsGroup"])]
        options += ["--memory", _bytes(limits["memory"]), "--cpus", _cores(limits["cpu"])]
        for variable, value in self._manifests.environment(container).items():
            options += ["--env", f"{variable}={value}"]
        if network == NETWORK:
            options += self._names(name)
        return [*options, *self._mounts(name, container, context)]

    def _names(self, name: str) -> list[str]:
        """The names of a pod: those of the Services that select it, and its own in a StatefulSet."""
        labels = self._pods[name]["metadata"]["labels"]
        services = [
            one for one in self._manifests.of_kind("Service") if one["spec"]["selector"].items() <= labels.items()
        ]
        names = [one["metadata"]["name"] for one in services]
        if name in {one["metadata"]["name"] for one in self._manifests.of_kind("StatefulSet")}:
            return [
                "--hostname",
                f"{name}-0",
                *(f"--network-alias={alias}" for one in names for alias in (one, f"{name}-0.{one}")),
            ]
        return [f"--network-alias={one}" for one in names]

    def _mounts(self, name: str, container: Manifest, context: Manifest) -> list[str]:
        spec = self._pods[name]["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        self._write_secrets(name, container)
        options: list[str] = []
        for mount in container.get("volumeMounts", ()):
            volume, path = volumes.get(mount["name"], {}), mount["mountPath"]
            modes = ["ro"] if mount.get("readOnly") else []
            if "secret" in volume:
                source = str(self._directory / name) + path
            elif "configMap" in volume:
                source = str(self._write_configuration(name, volume["configMap"]["name"], mount["subPath"]))
            else:
                source = self._volume(name, mount["name"], container, context)
                modes.append("nocopy")  # else the owner is that of the directory in the image
            options += ["--volume", ":".join([source, path, *([",".join(modes)] if modes else [])])]
        return options

    def _write_secrets(self, name: str, container: Manifest) -> None:
        """Write the files as Kubernetes does: of root, readable by the pod's group."""
        pod = self._pods[name]
        for path, content in secret_files(pod, container, self._secrets).items():
            file = Path(f"{self._directory / name}{path}")
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                file.write_text(content)
                if os.getuid() == 0:
                    os.chown(file, 0, pod["spec"]["securityContext"]["fsGroup"])
                file.chmod(0o440 if os.getuid() == 0 else 0o444)
        for folder in self._directory.rglob("*"):
            if folder.is_dir():
                folder.chmod(0o755)

    def _write_configuration(self, name: str, config_map: str, key: str) -> Path:
        file = self._directory / name / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self._manifests.find("ConfigMap", config_map)["data"][key])
        file.chmod(0o444)
        return file

    def _volume(self, name: str, volume: str, container: Manifest, context: Manifest) -> str:
        """Return a volume of Docker that the pod's user owns."""
        made = f"{NETWORK}-{name}-{volume}"
        if docker("volume", "inspect", made, check=False).returncode != 0:
            docker("volume", "create", "--label", LABEL, made)
            root = ["run", "--rm", "--user", "0:0", "--entrypoint", "chown", "--volume", f"{made}:/volume"]
            docker(*root, _image(container), _user(container, context), "/volume")
        return made


@contextlib.contextmanager
def pods_of(manifests: Manifests, secrets: Mapping[str, Mapping[str, str]], directory: Path) -> Iterator[Pods]:
    """Build the image and give the pods a network; all goes when the context ends, as do leftovers of a killed run."""
    _remove()
    docker("build", "--quiet", "--tag", IMAGE, str(ROOT))
    docker("network", "create", "--label", LABEL, NETWORK)
    try:
        yield Pods(manifests, secrets, directory)
    finally:
        _remove()


def _remove() -> None:
    ours = ("--quiet", "--filter", f"label={LABEL}")
    for listing, removing in (
        (("ps", "--all"), ("rm", "--force", "--volumes")),
        (("volume", "ls"), ("volume", "rm")),
        (("network", "ls"), ("network", "rm")),
    ):
        if found := docker(*listing, *ours).stdout.split():
            docker(*removing, *found)


def _image(container: Manifest) -> str:
    image = str(container["image"])
    return IMAGE if image.partition(":")[0] == OUR_IMAGE else image


def _words(container: Manifest) -> list[str]:
    """The image, and what comes after it; `--entrypoint` is among the options."""
    command = container.get("command", [])
    return [
        *(["--entrypoint", command[0]] if command else []),
        _image(container),
        *command[1:],
        *container.get("args", ()),
    ]


def _user(container: Manifest, context: Manifest) -> str:
    name = container["image"].partition(":")[0]
    if name in GIVEN_USERS:
        ids = (
            docker("run", "--rm", "--entrypoint", "id", _image(container), flag, name).stdout.strip()
            for flag in ("-u", "-g")
        )
        return ":".join(ids)
    return f"{context['runAsUser']}:{context['runAsGroup']}"


def _bytes(quantity: str) -> str:
    return quantity.removesuffix("i").lower()


def _cores(quantity: str) -> str:
    return f"{float(quantity[:-1]) / 1000}" if quantity.endswith("m") else quantity
