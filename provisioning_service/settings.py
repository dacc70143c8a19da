"""Settings of the provisioning service: those that every service has."""

from shared.settings import ServiceSettings


class ProvisioningSettings(ServiceSettings):
    """Nothing of its own yet: there is no provider to reach."""
