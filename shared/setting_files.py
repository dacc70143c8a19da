"""Settings in files: `ORDERSAGA_X_FILE` names the file that has the value of `ORDERSAGA_X`.

For the secrets that Compose, Kubernetes and systemd mount as files. A name that is declared as a setting is that
setting: ORDERSAGA_TLS_CA_FILE is a path, whatever else is declared.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from shared.errors import StartError

SUFFIX = "_FILE"
MAX_BYTES = 64 * 1024


class SettingFileError(StartError):
    """A value that cannot be read from its file: one line with the variable and the path, without the content."""


def file_variables(declared: Iterable[str]) -> dict[str, str]:
    """Return the variable that may name the file of each declared variable."""
    names = set(declared)
    return {name: f"{name}{SUFFIX}" for name in names if f"{name}{SUFFIX}" not in names}


def with_file_values(environment: Mapping[str, str], declared: Iterable[str]) -> dict[str, str]:
    """Return the variables with the values of those whose file is named; the names of the files stay.

    An empty variable counts as not set. Raises SettingFileError with all problems in one line.
    """
    complete, problems = dict(environment), []
    for name, file_variable in sorted(file_variables(declared).items()):
        if not (path := environment.get(file_variable)):
            continue
        if environment.get(name):
            problems.append(f"{name} and {file_variable}={path} are both set: remove one")
            continue
        try:
            complete[name] = read_value(file_variable, Path(path))
        except SettingFileError as error:
            problems.append(str(error))
    if problems:
        raise SettingFileError("; ".join(problems))
    return complete


def read_value(variable: str, path: Path) -> str:
    """Return the text in a file, without one newline at its end. Raises SettingFileError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise SettingFileError(f"{variable}={path} cannot be read: {reason}") from None
    if len(content) > MAX_BYTES:
        raise SettingFileError(f"{variable}={path} has more than {MAX_BYTES} bytes")
    try:
        value = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise SettingFileError(f"{variable}={path} does not contain text in UTF-8") from None
    if not value:
        raise SettingFileError(f"{variable}={path} is empty")
    if "\0" in value:
        raise SettingFileError(f"{variable}={path} contains a null byte")
    return value
