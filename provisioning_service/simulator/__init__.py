"""The SmartVPS simulator: a stand-in for the provider in demos and tests, with the provider's HTTP API.

Owns: nothing persistent. Packages, sales and faults are in memory and end with the process.
Listens to: HTTP only, the provider's three calls under /api/oceansmart and the tests' settings under /_control.
`python -m provisioning_service.simulator` starts it.
"""
