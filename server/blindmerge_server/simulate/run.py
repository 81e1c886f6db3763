"""The simulation from end to end: setting, Flower run, comparisons, report."""

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from blindmerge.adapter import AdapterReport, write_adapter
from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import ConfigInvalid
from blindmerge.files import explaining
from blindmerge_server.report.plots import plot_matrix, plot_scores
from blindmerge_server.report.schema import Report, Seconds, write_report
from blindmerge_server.simulate.apps import FlowerRun, run_in_flower
from blindmerge_server.simulate.comparisons import multi_task, systems
from blindmerge_server.simulate.federation import Federation
from blindmerge_server.simulate.record import (
    ADAPTER,
    FILES,
    OWN,
    TRANSCRIPTS,
    make_report,
    transcripts,
)
from blindmerge_server.simulate.setting import Setting, read_setting
from blindmerge_server.simulate.watch import Watch

__all__ = ["check_out", "simulate"]


def simulate(federation: Federation, out: Path, cache: Path, watch: Watch) -> Report:
    """Runs the federation and writes the files of FILES into `out`.

    cache: folder for what outlives the run (fetched material, fine-tuned models).
    Raises the errors of the tree in `blindmerge.errors`; `out` is then as it was before.
    """
    check_out(out)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".run-", dir=_made(cache)) as folder:
        work = Path(folder)
        setting = read_setting(federation, cache, work, watch.say)
        fetch_s = time.monotonic() - began_s
        merged = {name: work / "merged" / name for name in setting.plans}
        run = run_in_flower(setting, merged, watch)
        owners = [pupil.name for pupil in setting.pupils if pupil.name not in run.missing]
        own = {p.name: p.fine_tuned() for p in setting.pupils if p.name in owners}
        chosen = merged[next(iter(setting.plans))]
        adapter = _adapter(setting, chosen, work / ADAPTER)
        started_s = time.monotonic()
        pooled = None
        if not federation.heads_kept:
            pooled = multi_task(setting, owners, partial(watch.step, "fine-tune: multi-task"))
        comparisons_s = time.monotonic() - started_s
        started_s = time.monotonic()
        scores = systems(
            setting, own, merged, run.jobs, pooled, partial(watch.step, "apply models to test data")
        )
        evaluate_s = time.monotonic() - started_s
        seconds = Seconds(
            fetch=fetch_s,
            fine_tune=run.fine_tune_s,
            methods=run.method_s,
            comparisons=comparisons_s,
            exchanges={name: job.seconds for name, job in run.jobs.items()},
            evaluate=evaluate_s,
            total=time.monotonic() - began_s,
        )
        report = make_report(setting, run, scores, seconds, adapter)
        folders = {FILES["merged model"]: chosen}
        if adapter is not None:
            folders[ADAPTER] = work / ADAPTER
        if federation.heads_kept:
            folders |= _own_models(setting, run)
        _write(report, folders, transcripts(setting, run), out)
    return report


def check_out(out: Path) -> None:
    """Raises ConfigInvalid if `out` cannot be written or holds more than an earlier run's files."""
    hint = "choose a new folder with --out"
    if out.is_dir():
        known = {*FILES.values(), ADAPTER, OWN, TRANSCRIPTS}
        odd = sorted(path.name for path in out.iterdir() if path.name not in known)
        if odd:
            raise ConfigInvalid(f"the folder '{out}' holds other files, e.g. '{odd[0]}'", hint=hint)
    above = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not above.is_dir():
        raise ConfigInvalid(f"'{above}' is not a folder", hint=hint)
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigInvalid(f"the folder '{above}' cannot be written", hint=hint)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _own_models(setting: Setting, run: FlowerRun) -> dict[str, Path]:
    """Where each owner in the result has the merged model under its own head."""
    name, plan = next(iter(setting.plans.items()))
    return {
        f"{OWN}/{owner}": setting.owners / owner / plan.sha256 / "merged"
        for owner in run.jobs[name].scores
    }


def _adapter(setting: Setting, merged: Path, out: Path) -> AdapterReport | None:
    rank = setting.federation.job.adapter_rank
    return None if rank is None else write_adapter(setting.base, Checkpoint(merged), rank, out)


def _write(
    report: Report, folders: Mapping[str, Path], proofs: Mapping[str, bytes], out: Path
) -> None:
    """Everything is made beside `out` first, so that a crash leaves no half of a result.

    folders: what is copied, by its name in `out`.
    """
    staged = out.parent / f".{out.name}.new"
    shutil.rmtree(staged, ignore_errors=True)
    try:
        with explaining(out):
            _fill(staged, report, folders, proofs)
            _put(staged, out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _fill(
    folder: Path, report: Report, folders: Mapping[str, Path], proofs: Mapping[str, bytes]
) -> None:
    for name, source in folders.items():
        (folder / name).mkdir(parents=True)
        # Not copytree: of a full disk it makes an error without a number.
        for file in source.iterdir():
            shutil.copyfile(file, folder / name / file.name)
    plot_scores(report, folder / FILES["scores per method"])
    plot_matrix(report, folder / FILES["who does well on whose data"])
    write_report(report, folder / FILES["report"])
    for name, proof in proofs.items():
        (folder / TRANSCRIPTS).mkdir(exist_ok=True)
        (folder / TRANSCRIPTS / name).write_bytes(proof)


def _put(staged: Path, out: Path) -> None:
    """In the place of an earlier run's files, if there are any."""
    if not out.exists():
        staged.rename(out)
        return
    for name in (*FILES.values(), ADAPTER, OWN, TRANSCRIPTS):
        with suppress(FileNotFoundError):
            _remove(out / name)
    for path in staged.iterdir():
        path.rename(out / path.name)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
