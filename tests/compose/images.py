"""The public images of deploy/scale, or stand-ins from Debian's packages where they cannot be pulled."""

import re
import subprocess
from pathlib import Path

import docker

from tests.compose.stack import ROOT, SCALE_OVERLAY
from tests.support.containers import obtain

STAND_INS = Path(__file__).with_name("stand_ins")
IMAGES = ("haproxy", "prometheus", "alertmanager")


class ImageError(AssertionError):
    """An image can neither be pulled nor built."""


def images_of_scale() -> dict[str, str]:
    """Return the variables that name the images of deploy/scale; pull or build them. Raises ImageError."""
    named = dict(re.findall(r"\$\{ORDERSAGA_(\w+)_IMAGE:-([^}]+)\}", (ROOT / SCALE_OVERLAY).read_text()))
    return {f"ORDERSAGA_{name.upper()}_IMAGE": _image(name, named[name.upper()]) for name in IMAGES}


def _image(name: str, public: str) -> str:
    engine = docker.from_env(timeout=300)
    try:
        problem = obtain(engine, public)
    finally:
        engine.close()
    return public if problem is None else _build(name, problem)


def _build(name: str, problem: str) -> str:
    image = f"ordersaga-{name}:tests"
    command = ["docker", "build", "--quiet", "--target", name, "--tag", image, str(STAND_INS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    if done.returncode != 0:
        raise ImageError(f"{problem}, and its stand-in cannot be built: {done.stderr[-500:]}")
    return image
