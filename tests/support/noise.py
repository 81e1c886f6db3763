"""Plans with noise for small jobs, and owners' accounts.

job = with_noise(make_job(tmp_path, owners=3, rows_factor=0.0), multiplier=1.0)
account = account_of(tmp_path / "ledger", texts=12)
"""

from pathlib import Path
from typing import Any

from blindmerge.privacy.accountant import epsilon_of, rho_of
from blindmerge.privacy.terms import gram_groups
from blindmerge_client.ledger import Budget, Ledger
from blindmerge_client.noise import Account
from support.jobs import Job, with_plan

__all__ = ["DELTA", "NOW", "account_of", "with_noise"]

DELTA = 1e-6
NOW = 1_700_000_000


def with_noise(job: Job, multiplier: float = 1.0, clip: float = 20.0, **changes: Any) -> Job:
    """The same job with noise on all its Gram matrices, if its method has any.

    changes: of the noise.
    """
    grams = {
        "multiplier": multiplier,
        "clip": clip,
        "weights": (1.0,) * len(gram_groups(job.plan.manifest)),
    }
    regmean = job.plan.method.name == "regmean"
    noise = {
        "mode": "statistics",
        "epsilon": epsilon_of(rho_of(multiplier), DELTA) if regmean else 0.0,
        "delta": DELTA,
        "grams": grams if regmean else None,
    }
    return with_plan(job, noise=noise | changes)


def account_of(folder: Path, epsilon: float = 100.0, persons: Any = None) -> Account:
    """A new ledger in `folder`, or the one that is there."""
    dataset = "examples"
    ledger = Ledger(folder) if folder.exists() else Ledger.create(folder, dataset, now=NOW)
    return Account(ledger, dataset, Budget(epsilon, DELTA), persons)
