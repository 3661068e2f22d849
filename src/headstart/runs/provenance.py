"""What the results of a run came from: its data, the user's own code, and a name that its states carry.

It is the content of `federation.json`. A run resumes, or is shown again, with the same alone, wherever that lies now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.federation import Federation, Split
from headstart.data.fingerprint import combined, differing, fingerprint
from headstart.documents import parse_json
from headstart.errors import UserError
from headstart.experiment.setup import IN_MEMORY
from headstart.files import write_json
from headstart.runs.log import Record

MEMBERS = "members.json"


def provenance(federation: Federation, code: Mapping[str, Any]) -> Record:
    """The record of a run's data and code.

    code: "code", the digests of the user's modules, and "model", that of a model in memory; see `experiment.code`.
        "start", those of the parameters that seeds start from.
    """
    digest = hashlib.sha256("\n".join(federation.ids).encode(errors="surrogatepass"))
    digest.update(np.ascontiguousarray(federation.sizes).tobytes())
    return {
        "name": federation.name,
        "clients": len(federation),
        "examples": int(federation.sizes.sum()),
        "facts": dict(federation.metadata),
        "sha256": digest.hexdigest(),
        "fingerprint": fingerprint(federation),
        **code,
    }


def resumed(out: Path, saved: Record | None, now: Record, document: Mapping[str, Any]) -> Record:
    """The record to keep: of a run that was begun before, under the name that it has.

    document: the experiment's, of which a new run's name is made.

    Raises:
        UserError: if data, code or the parameters to start from have changed since the run was begun.
    """
    name = combined([_lasting(document), now["fingerprint"], now.get("code"), now.get("model")])
    if saved is None:
        return {**now, "run": name}
    changed = _changed_data(saved, now)
    if changed:
        raise UserError(
            f"{changed} of {now['name']} have changed since {out} was begun; choose another --out, or bring back the"
            " data that it was begun with"
        )
    changed = _changed_code(saved, now)
    if changed:
        raise UserError(
            f"the code of {changed} has changed since {out} was begun; choose another --out, or bring it back"
        )
    before, present = saved.get("start", {}), now.get("start", {})
    if any(before.get(seed, digest) != digest for seed, digest in present.items()):
        raise UserError(
            f"the parameters in {document['start']} have changed since {out} was begun, which starts from them; choose"
            " another --out, or bring back the file"
        )
    start = {"start": {**before, **present}} if before or present else {}
    return {**now, **start, "run": saved.get("run", name)}


def is_of(saved: Record, now: Record) -> bool:
    """Whether what has the record `saved` came from the data and the code of the record `now`."""
    return not (_changed_data(saved, now) or _changed_code(saved, now))


def _lasting(document: Mapping[str, Any]) -> dict[str, Any]:
    """What of an experiment's document decides its states: not where the data lie, nor when the last stage ends."""
    data = {name: value for name, value in document["data"].items() if name != "source"}
    *others, last = document["stages"]
    last = {name: value for name, value in last.items() if name != "rounds"}
    return {**document, "data": data, "stages": [*others, last]}


def _changed_data(saved: Record, now: Record) -> str:
    if "fingerprint" in saved:
        return differing(saved["fingerprint"], now["fingerprint"])
    # Written before there were fingerprints.
    return "the clients" if saved.get("sha256") != now["sha256"] else ""


def _changed_code(saved: Record, now: Record) -> str:
    before, after = saved.get("code"), now.get("code")
    if before is not None and after is not None:
        modules = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        if modules:
            return ", ".join(modules)
    before, after = saved.get("model"), now.get("model")
    # Another JAX may put the same operations in other words.
    if before and after and before["jax"] == after["jax"] and before["sha256"] != after["sha256"]:
        return "the model"
    return ""


def at_present_source(
    before: Mapping[str, Any], document: Mapping[str, Any], saved: Record | None, now: Record
) -> dict[str, Any]:
    """The document of an experiment before, with the present source of its data if that holds the same.

    saved, now: the records of then and now.
    """
    sources = before["data"]["source"], document["data"]["source"]
    same = saved is not None and saved.get("fingerprint") == now["fingerprint"]
    if not same or IN_MEMORY in sources:
        return dict(before)
    return {**before, "data": {**before["data"], "source": sources[1]}}


def write_members(out: Path, ids: Sequence[str], groups: Split) -> None:
    """Keep who trains, validates and tests, by id; a run that resumes has it already."""
    if not (out / MEMBERS).exists():
        write_json(out / MEMBERS, {name: [ids[int(i)] for i in group] for name, group in groups._asdict().items()})


def read_members(path: Path) -> dict[str, list[str]]:
    """The ids of clients by group, as `write_members` keeps them.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        members = parse_json(path.read_bytes(), largest=2**28)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); repeat the `headstart run` command of its run") from error
    whole = isinstance(members, dict) and set(members) == set(Split._fields)
    if not whole or not all(isinstance(ids, list) and all(isinstance(i, str) for i in ids) for ids in members.values()):
        raise UserError(f"{path} is damaged: it does not name clients by group; remove it, and repeat `headstart run`")
    return members
