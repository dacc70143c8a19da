"""Checks the provider of servers of a running stack."""

from collections.abc import Mapping

from operations.doctor.finding import Finding, note, ok, wrong
from operations.stack import provider
from operations.stack.environment import with_values
from operations.stack.layout import SMARTVPS_URL_VARIABLE
from provisioning_service.provider import ProviderError
from provisioning_service.smartvps import SmartVps
from shared.setting_files import SettingFileError

TIMEOUT_SECONDS = 10.0
SUBJECT = "server provider"


async def check_provider(simulator_url: str | None, environment: Mapping[str, str]) -> Finding:
    """Check the provider in the environment, else the stack's simulator; only its packages are requested."""
    try:
        environment = with_values(environment)
    except SettingFileError as error:
        return wrong(SUBJECT, str(error), "correct the file, or the variable that names it")
    if url := environment.get(SMARTVPS_URL_VARIABLE):
        login = {name: environment.get(name, "") for name in (provider.USERNAME_VARIABLE, provider.PASSWORD_VARIABLE)}
        return await check_answer(url, login)
    if simulator_url is not None:
        return await check_answer(simulator_url, provider.simulator_login(environment))
    fix = f"set {SMARTVPS_URL_VARIABLE} here and for the provisioning service"
    return note(SUBJECT, "not configured; without a provider, every order of a server fails", fix)


async def check_answer(url: str, login: Mapping[str, str]) -> Finding:
    """Check that the provider at this URL accepts the login and lists its packages."""
    client = SmartVps(
        url=url,
        username=login[provider.USERNAME_VARIABLE],
        password=login[provider.PASSWORD_VARIABLE],
        buy_timeout=TIMEOUT_SECONDS,
        status_timeout=TIMEOUT_SECONDS,
        stock_timeout=TIMEOUT_SECONDS,
    )
    try:
        packages = await client.packages()
    except ProviderError as error:
        fix = f"start it, or correct {SMARTVPS_URL_VARIABLE}, {provider.USERNAME_VARIABLE} and _PASSWORD"
        return wrong(SUBJECT, str(error), fix)
    finally:
        await client.close()
    active = [package for package in packages if package.active]
    return ok(SUBJECT, f"{len(active)} active packages, {sum(package.ipv4 for package in active)} free addresses")
