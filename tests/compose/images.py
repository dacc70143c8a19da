"""The public images beside those of the servers, or stand-ins where they cannot be pulled."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import docker

from tests.compose.stack import ROOT, SCALE_OVERLAY
from tests.support.containers import obtain

STAND_INS = Path(__file__).with_name("stand_ins")
OF_SCALE = ("haproxy",)
OF_MONITORING = ("prometheus", "alertmanager", "grafana", "mongodb_exporter", "busybox")
EXPORTER = {"ORDERSAGA_EXPORTER_IMAGE": "ordersaga-mongodb-exporter:tests"}
"""The image that is built of the last two."""


class ImageError(AssertionError):
    """An image can neither be pulled nor built."""


def images(names: Sequence[str]) -> dict[str, str]:
    """Return the variables that name these images; pull or build them. Raises ImageError."""
    texts = ((ROOT / file).read_text() for file in ("docker-compose.yml", SCALE_OVERLAY))
    found = dict(re.findall(r"\$\{ORDERSAGA_(\w+)_IMAGE:-([^}]+)\}", "".join(texts)))
    return {f"ORDERSAGA_{name.upper()}_IMAGE": _image(name, found[name.upper()]) for name in names}


def _image(name: str, public: str) -> str:
    engine = docker.from_env(timeout=300)
    try:
        problem = obtain(engine, public)
    finally:
        engine.close()
    return public if problem is None else _build(name, problem)


def _build(name: str, problem: str) -> str:
    image = f"ordersaga-{name.replace('_', '-')}:stand-in"
    command = ["docker", "build", "--quiet", "--target", name, "--tag", image, str(STAND_INS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    if done.returncode != 0:
        raise ImageError(f"{problem}, and its stand-in cannot be built: {done.stderr[-500:]}")
    return image
