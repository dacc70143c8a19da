"""Checks the members of a replica set: their number and state, how soon they elect, and what a write waits for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pymongo
import pymongo.errors

from operations.doctor.finding import Finding, note, ok, wrong
from operations.stack.replica_set import ELECTION_SETTINGS
from shared import schema

MEMBERS, ELECTIONS, WRITES = "replica set members", "elections", "write concern"
PAGE = "docs/clusters.md"
SLOW_ELECTION_MS = 5000
"""The election time-out from which requests fail during the loss of a primary, because clients wait for less."""
NO_LIMIT = -1
"""MongoDB's default of `catchUpTimeoutMillis`."""
_IN_ORDER = frozenset({"PRIMARY", "SECONDARY", "ARBITER"})


@dataclass(frozen=True)
class ReplicaSet:
    """The configuration of a replica set, the state of each member, and the default write concern."""

    config: Mapping[str, Any]
    states: Mapping[str, str]
    default_write_concern: object

    @property
    def voting(self) -> list[str]:
        """The members that elect the primary."""
        return [member["host"] for member in self.config["members"] if member["votes"]]

    @property
    def arbiters(self) -> list[str]:
        """The members that vote, but have no data: no write can wait for them."""
        return [member["host"] for member in self.config["members"] if member["arbiterOnly"]]


async def check_members(client: "pymongo.AsyncMongoClient[dict[str, Any]]", *, is_own: bool) -> list[Finding]:
    """Check the members of the replica set. Of one that `ordersaga up` runs, `is_own`, a single member is in order."""
    try:
        found = await _read(client)
    except pymongo.errors.OperationFailure as error:
        if error.code != schema.UNAUTHORIZED:
            raise
        fix = f"run `ordersaga database prepare`, which lets maintenance read them, or rs.conf() in mongosh: {PAGE}"
        return [note(MEMBERS, "not checked: this user may not read the configuration of the replica set", fix)]
    findings = [check_states(found) or check_number(found, is_own)]
    if len(found.voting) > 1:
        findings.append(check_elections(found.config["settings"]))
    return [*findings, check_writes(found)]


async def _read(client: "pymongo.AsyncMongoClient[dict[str, Any]]") -> ReplicaSet:
    config = (await client.admin.command("replSetGetConfig"))["config"]
    status = await client.admin.command("replSetGetStatus")
    defaults = await client.admin.command("getDefaultRWConcern")
    states = {member["name"]: member["stateStr"] for member in status["members"]}
    return ReplicaSet(config, states, defaults.get("defaultWriteConcern", {}).get("w"))


def check_states(found: ReplicaSet) -> Finding | None:
    """Return what is wrong with the state of a member, None if all are in order."""
    troubled = {host: state for host, state in found.states.items() if state not in _IN_ORDER}
    if not troubled:
        return None
    described = ", ".join(f"{host} is {state}" for host, state in troubled.items())
    return wrong(MEMBERS, described, f"start it, or see its log; if it never returns, replace it: {PAGE}")


def check_number(found: ReplicaSet, is_own: bool) -> Finding:
    """Check that writes reach a majority after the loss of one member; a stack of ours may have a single one."""
    voting, arbiters = len(found.voting), ", ".join(found.arbiters)
    with_data = voting - len(found.arbiters)
    described = f"{with_data} with data and the arbiter {arbiters}" if arbiters else str(voting)
    if voting == 1:
        detail = "one: nothing works while it is away, and its disk is the only copy"
        return ok(MEMBERS, detail) if is_own else note(MEMBERS, detail, f"add two members: {PAGE}")
    if with_data > voting // 2 + 1:
        return ok(MEMBERS, f"{described}, all there")
    if arbiters:
        detail = f"{described}: without one of those with data, every write waits"
        return wrong(MEMBERS, detail, f"replace the arbiter by a member with data: {PAGE}")
    return wrong(MEMBERS, f"{described}: without either of them there is no majority", f"add a third member: {PAGE}")


def check_elections(settings: Mapping[str, Any]) -> Finding:
    """Check how soon a primary that is silent is replaced."""
    election = int(settings["electionTimeoutMillis"])
    catch_up = int(settings.get("catchUpTimeoutMillis", NO_LIMIT))
    detail = f"a primary that is silent is replaced after {election / 1000:g} s"
    if catch_up == NO_LIMIT:
        detail += ", or whenever its successor gives up waiting for its last writes"
    elif catch_up:
        detail += f", or {(election + catch_up) / 1000:g} s if only that one has its last writes"
    if catch_up == NO_LIMIT or election + catch_up > SLOW_ELECTION_MS:
        wanted = ", ".join(f"{name}: {value}" for name, value in ELECTION_SETTINGS.items())
        fix = f"c = rs.conf(); Object.assign(c.settings, {{{wanted}}}); rs.reconfig(c) in mongosh: {PAGE}"
        return note(ELECTIONS, f"{detail}: until then, nothing is accepted", fix)
    return ok(ELECTIONS, detail)


def check_writes(found: ReplicaSet) -> Finding:
    """Check that a write is on the disks of the majority before it is acknowledged."""
    if not found.config.get("writeConcernMajorityJournalDefault", True):
        fix = f"c = rs.conf(); c.writeConcernMajorityJournalDefault = true; rs.reconfig(c) in mongosh: {PAGE}"
        return wrong(WRITES, "a write is acknowledged before it is on the disk of the majority", fix)
    if found.default_write_concern != "majority":
        detail = f"services wait for the majority, other programs for {found.default_write_concern} by default"
        fix = 'db.adminCommand({setDefaultRWConcern: 1, defaultWriteConcern: {w: "majority"}}) in mongosh'
        return note(WRITES, detail, fix)
    return ok(WRITES, "the majority, on disk")
