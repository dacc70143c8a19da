"""The SmartVPS simulator: a stand-in for the provider, for demos and tests; it speaks the provider's HTTP API.

Owns nothing that lasts: packages, sales and faults are in memory and end with the process.
Listens to HTTP alone: the provider's three calls under /api/oceansmart, what tests set under /_control.
`python -m provisioning_service.simulator` starts it.
"""
