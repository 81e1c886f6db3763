"""From a job's TOML file to the plan that the coordinator signs."""

from pathlib import Path

from pydantic import ValidationError

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import BlindmergeError, ConfigInvalid
from blindmerge.files import replacing
from blindmerge.identity import Roster
from blindmerge.plan import Masks, Plan
from blindmerge.signed_plan import SignedPlan
from blindmerge.tasks import LANGUAGE
from blindmerge_server.config import Home, JobSettings
from blindmerge_server.simulate.noise_terms import warning_of, with_noise

__all__ = ["make_plan", "noise_warning", "read_plan", "write_plan"]


def make_plan(job: JobSettings, roster: Roster, norms: Path) -> Plan:
    """The plan of a job, always with masks.   norms: folder for what noise knows of bases.

    Raises ConfigInvalid if the base model cannot be merged as the job says, and what
    `Checkpoint` and `Masks.of` raise.
    """
    base = Checkpoint(job.base)
    if not base.labels and base.task not in LANGUAGE:
        raise ConfigInvalid(
            f"the base model '{job.base}' has no labels",
            hint="all owners fine-tune one classifier; give that checkpoint, with its new head",
        )
    kept = job.heads == "kept"
    if kept and not base.manifest.with_head_kept.kept:
        raise ConfigInvalid(
            f"the base model '{job.base}' has no head that owners could keep",
            hint='take heads = "shared"',
        )
    try:
        plan = Plan(
            job=job.name,
            base=base.sha256,
            manifest=base.manifest.with_head_kept if kept else base.manifest,
            task=base.task,
            labels=() if kept else base.labels,
            method=job.method,
            examples=job.examples,
            max_length=job.max_length,
            masks=Masks.of(roster, job.colluders, job.bits),
        )
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ConfigInvalid(f"job '{job.name}' cannot be planned: {first['msg']}") from error
    if job.noise is None:
        return plan
    return with_noise(plan, job.base, job.noise, len(roster), norms)


def noise_warning(plan: Plan, job: JobSettings) -> str | None:
    """What to do if noise will drown the statistics of a job; None if it will not."""
    if job.noise is None or plan.masks == "off":
        return None
    return warning_of(plan, job.noise, plan.masks.thresholds.owners)


def write_plan(home: Home, job: JobSettings) -> SignedPlan:
    """Signs the plan and writes it to the folder of plans; the same plan again changes nothing.

    Raises ConfigInvalid if there is another plan of that name: owners may have read it.
    """
    signed = SignedPlan.sign(make_plan(job, home.roster(), home.layouts), home.identity())
    file = home.plans / f"{job.name}.plan"
    if file.exists():
        if read_plan(home, job.name) != signed:
            raise ConfigInvalid(
                f"job '{job.name}' has another plan already, in '{file}'",
                hint="give the job a new name: owners may have read and approved the old plan",
            )
        return signed
    with replacing(file) as temporary:
        temporary.write_bytes(signed.encode())
    return signed


def read_plan(home: Home, name: str) -> SignedPlan:
    """The plan of this name.   Raises ConfigInvalid if there is none or it is damaged."""
    file = home.plans / f"{name}.plan"
    try:
        signed = SignedPlan.decode(file.read_bytes())
        signed.verify([home.identity().member])
    except OSError as error:
        raise ConfigInvalid(
            f"there is no plan of job '{name}'", hint="write it: blindmerge server plan"
        ) from error
    except BlindmergeError as error:
        raise ConfigInvalid(
            f"'{file}' is damaged", hint="remove it, and write the plan again under a new name"
        ) from error
    return signed
