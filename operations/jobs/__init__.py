"""Provisioning jobs, as the provisioning service records them: the list, and what a job says in words."""
