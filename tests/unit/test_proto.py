"""The code of the gRPC contract is generated from it, and the contract only grows."""

from pathlib import Path

from scripts.proto import ROOT, generate

GENERATED = ROOT / "order_service/rpc/generated"


def test_the_generated_code_is_that_of_the_contract(tmp_path: Path) -> None:
    generate(tmp_path)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made
    for name, text in made.items():
        assert (GENERATED / name).read_text() == text, f"{name} is out of date: make proto"
