"""Whole jobs without any transport."""

from pathlib import Path

from blindmerge.checkpoint import Checkpoint, CheckpointWriter
from blindmerge_server.rounds import BlockSum, solve_block
from support.jobs import Job

__all__ = ["merge"]


def merge(job: Job) -> Path:
    """Runs the whole job; returns the merged checkpoint's folder."""
    base = Checkpoint(job.base)
    writer = CheckpointWriter(job.folder / "merged", base, job.plan.blocks)
    sessions = [job.session(owner) for owner in range(len(job.owners))]
    for number in range(len(job.plan.blocks)):
        block_sum = BlockSum(job.plan, number)
        for owner, session in enumerate(sessions):
            block_sum.add(f"owner-{owner}", session.contribute(number).arrays)
        solve_block(job.plan, block_sum.total(), base, writer)
        for session in sessions:
            session.receive(writer.read(number))
    writer.finish()
    return job.folder / "merged"
