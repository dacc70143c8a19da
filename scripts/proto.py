"""Generate the Python code of proto/ordersaga/v1/orders.proto into a directory; `make proto` does."""

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[1]
PROTO = ROOT / "proto/ordersaga/v1/orders.proto"
PACKAGE = "order_service.rpc.generated"


def generate(target: Path) -> None:
    """Write the generated modules, which import each other from PACKAGE. Raises RuntimeError if protoc fails."""
    with tempfile.TemporaryDirectory() as made:
        outputs = [f"--{kind}_out={made}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"-I{_well_known()}", *outputs, str(PROTO)]):
            raise RuntimeError(f"protoc cannot compile {PROTO}")
        target.mkdir(parents=True, exist_ok=True)
        for module in (Path(made) / "ordersaga/v1").iterdir():
            # protoc names modules by the path of the .proto file, which is part of the contract; ours are elsewhere.
            text = module.read_text().replace("from ordersaga.v1 import", f"from {PACKAGE} import")
            (target / module.name).write_text(text)


def _well_known() -> Path:
    """Return the directory of google/protobuf/*.proto."""
    return Path(protoc.__file__).parent / "_proto"


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
