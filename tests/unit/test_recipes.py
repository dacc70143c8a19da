"""The recipes of CONTRIBUTING.md: their files exist, and no participant or service is declared in any other file."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from order_service.participants import PARTICIPANTS
from shared.services import SERVICES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
MOST_EXISTING_FILES = 15


def sections() -> Iterator[tuple[str, str]]:
    recipes = PAGE.partition("## Recipes\n")[2].partition("\nCommits have")[0]
    for section in recipes.split("\n### ")[1:]:
        title, _, text = section.partition("\n")
        yield title, text


RECIPES = dict(sections())


def named(recipe: str) -> Iterator[tuple[str, bool]]:
    """Yield every path that the recipe names, and whether it is marked as new."""
    for path, new in re.findall(r"`([\w.<>/-]+\.\w+|Dockerfile|\.dockerignore)`( \(new\))?", RECIPES[recipe]):
        if "/" in path or (ROOT / path).exists():
            yield path, bool(new)


def existing(recipe: str) -> set[str]:
    return {path for path, new in named(recipe) if not new}


def files_with(pattern: str, *pathspecs: str) -> set[str]:
    command = ["git", "grep", "-lwE", pattern, "--", *pathspecs]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


def test_there_are_recipes() -> None:
    assert {
        "Add a participant",
        "Add a service",
        "Add a gateway",
        "Add a provider",
        "Add a dead-letter action",
    } == RECIPES.keys()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_files_of_a_recipe_exist_and_are_few(recipe: str) -> None:
    assert [path for path in existing(recipe) if not (ROOT / path).is_file()] == []
    assert 0 < len(existing(recipe)) <= MOST_EXISTING_FILES


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_new_files_of_a_recipe_are_new_in_a_folder_that_exists(recipe: str) -> None:
    for path in (path for path, new in named(recipe) if new):
        assert not (ROOT / path).exists()
        assert (ROOT / path).parent.is_dir()


def test_a_participant_is_named_only_in_the_files_of_its_recipe() -> None:
    messages = [message for row in PARTICIPANTS for message in (row.done, row.refused, row.undone, row.undo_type)]
    places = files_with(
        "|".join(message.__name__ for message in messages), "*.py", ":!tests", ":!benchmarks", ":!simulation"
    )
    owners = ("inventory_service/", "payment_service/", "shared/contracts/inventory.py", "shared/contracts/payments.py")
    assert {path for path in places if not path.startswith(owners)} <= existing("Add a participant")


def test_the_state_of_a_participant_is_named_only_in_the_files_of_its_recipe() -> None:
    fields = [name for row in PARTICIPANTS for name in (row.field, row.stored_field)]
    # The demo is a shop's client: it reads the states of its orders over HTTP. So is the Python client, which takes a
    # state that it has no field for.
    places = files_with("|".join(fields), "*.py", ":!tests", ":!operations/demo", ":!clients", ":!examples")
    assert places <= existing("Add a participant")


def test_a_service_is_declared_only_in_the_files_of_its_recipe() -> None:
    packages = [service.package for service in SERVICES.values() if service.package != "operations"]
    places = files_with("|".join(packages), "*.toml", "*.yml", "Dockerfile", ".dockerignore", "shared/*.py", "deploy")
    own = {"mkdocs.yml", *(f"deploy/kubernetes/base/{name}.yaml" for name in SERVICES)}
    assert places - own <= existing("Add a service")
