"""Checks the provider of servers of a running stack."""

from collections.abc import Mapping

from operations.doctor.finding import Finding, note, ok, wrong
from operations.reading.provider import open_provider
from operations.stack import provider
from operations.stack.environment import with_values
from operations.stack.layout import SMARTVPS_URL_VARIABLE
from provisioning_service.provider import ProviderError
from shared.setting_files import SettingFileError

SUBJECT = "server provider"


async def check_provider(simulator_url: str | None, environment: Mapping[str, str]) -> Finding:
    """Check the provider in the environment, else the stack's simulator; only its packages are requested."""
    try:
        environment = with_values(environment)
    except SettingFileError as error:
        return wrong(SUBJECT, str(error), "correct the file, or the variable that names it")
    if configured := provider.configured_provider(simulator_url, environment):
        return await check_answer(*configured)
    fix = f"set {SMARTVPS_URL_VARIABLE} here and for the provisioning service"
    return note(SUBJECT, "not configured; without a provider, every order of a server fails", fix)


async def check_answer(url: str, login: Mapping[str, str]) -> Finding:
    """Check that the provider at this URL accepts the login and lists its packages."""
    try:
        async with open_provider(url, login[provider.USERNAME_VARIABLE], login[provider.PASSWORD_VARIABLE]) as client:
            packages = await client.packages()
    except ProviderError as error:
        fix = f"start it, or correct {SMARTVPS_URL_VARIABLE}, {provider.USERNAME_VARIABLE} and _PASSWORD"
        return wrong(SUBJECT, str(error), fix)
    active = [package for package in packages if package.active]
    return ok(SUBJECT, f"{len(active)} active packages, {sum(package.ipv4 for package in active)} free addresses")
