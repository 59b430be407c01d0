"""Folds as jobs of a cluster, by submitit; jobs outlive the program that submitted them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import psutil  # type: ignore[import-untyped]
from submitit import Job, LocalExecutor, LocalJob, SlurmExecutor, SlurmJob
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError
from submitit.helpers import Checkpointable
from submitit.slurm.slurm import SlurmInfoWatcher

from df2serve.backends.torch import choose_device
from df2serve.errors import BackendError, BackendUnavailableError, ConfigError, Df2ServeError
from df2serve.files import replace_file
from df2serve_training.history import StepReport, read_history
from df2serve_training.members import HISTORY, Training, train_member
from df2serve_training.settings import JobSettings

__all__ = ["train_by_jobs"]

_POLL_SECONDS = 2.0
_RESTARTS = 1000
_WEEK_MINUTES = 7 * 24 * 60

_MemberJob: TypeAlias = Job[Df2ServeError | None]


class _TrainMember(Checkpointable):
    """What a job does; a job that runs out of time is queued again and goes on."""

    def __init__(self, training: Training, fold: int, device: str) -> None:
        self._training = training
        self._fold = fold
        self._device = device

    def __call__(self) -> Df2ServeError | None:
        """Train the member; return what the submitter is to raise."""
        try:
            device = choose_device(self._device)
            train_member(self._training, self._fold, device=device, listener=lambda report: None)
        except Df2ServeError as error:
            return error
        return None


class _QueueWatcher(SlurmInfoWatcher):
    """Asks `squeue`, because `sacct` is silent on clusters that keep no accounts of jobs."""

    def _make_command(self) -> list[str] | None:
        if self._registered <= self._finished:
            return None
        return ["squeue", "--me", "--noheader", "--format=%A|%T"]

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """Return the state of each job; one that is not listed has ended, whatever its end."""
        listed = string if isinstance(string, str) else string.decode()
        states = dict(line.split("|") for line in listed.split())
        return {name: {"State": states.get(name, "ENDED")} for name in self._registered}


class _SlurmJob(SlurmJob[Df2ServeError | None]):
    watcher = _QueueWatcher(delay_s=60)


class _SlurmExecutor(SlurmExecutor):
    job_class = _SlurmJob


def train_by_jobs(
    training: Training,
    folds: Sequence[int],
    settings: JobSettings,
    *,
    device: str,
    listener: Callable[[StepReport], None],
) -> None:
    """Submit a job per member, and wait for all of them.

    Whatever ends the waiting, jobs go on; called again, it waits for those that still run and
    submits the others anew.

    Args:
        training: what members share; its files lie where jobs find them by the same paths.
        folds: of the members to train.
        settings: where jobs run.
        device: of each job.
        listener: called with the reports of all members.

    Raises:
        ConfigError: the cluster's options are unknown.
        BackendUnavailableError: there is no such cluster here.
        BackendError: a job was ended from outside.
    """
    folder = training.work / "jobs"
    executor = _executor(folder, settings)
    record = folder / "jobs.json"
    ids: dict[str, str] = json.loads(record.read_text()) if record.is_file() else {}
    waiting: dict[int, _MemberJob] = {}
    for fold in folds:
        job = _running(executor, ids.get(str(fold)))
        if job is None:
            job = _submit(executor, _TrainMember(training.without_pixels(), fold, device))
        waiting[fold] = job
        ids[str(fold)] = job.job_id
        replace_file(record, json.dumps(ids).encode())
    steps = dict.fromkeys(waiting, 0)
    while waiting:
        for fold, job in list(waiting.items()):
            finished = _is_done(job)
            for report in _reports(training, fold):
                if report.step > steps[fold]:
                    steps[fold] = report.step
                    listener(report)
            if finished:
                _require_success(job, fold)
                del waiting[fold]
        time.sleep(_POLL_SECONDS if waiting else 0)


def _executor(folder: Path, settings: JobSettings) -> SlurmExecutor | LocalExecutor:
    try:
        if settings.executor == "slurm":
            slurm = _SlurmExecutor(folder, max_num_timeout=_RESTARTS)
            slurm.update_parameters(**settings.options)
            return slurm
        local = LocalExecutor(folder)
        local.update_parameters(**({"timeout_min": _WEEK_MINUTES} | settings.options))
    except RuntimeError as error:
        message = f"there is no SLURM here: {error}; run this where sbatch and srun are"
        raise BackendUnavailableError(message) from error
    except (TypeError, ValueError, NameError) as error:
        reason = " ".join(str(error).split())
        message = f"cannot submit jobs with {settings.options}: {reason}"
        raise ConfigError(message) from error
    return local


def _submit(executor: SlurmExecutor | LocalExecutor, task: _TrainMember) -> _MemberJob:
    try:
        return executor.submit(task)
    except FailedSubmissionError as error:
        message = f"the cluster refuses the job: {' '.join(str(error).split())}"
        raise BackendError(message) from error


def _running(executor: SlurmExecutor | LocalExecutor, job_id: str | None) -> _MemberJob | None:
    """Return a job of an earlier call that still runs or waits to run."""
    if job_id is None:
        return None
    job: _MemberJob = executor.job_class(executor.folder, job_id)
    return None if _is_done(job) else job


def _is_done(job: _MemberJob) -> bool:
    if not job.done():
        return False
    return not (isinstance(job, LocalJob) and _runs_here(int(job.job_id)))


def _runs_here(pid: int) -> bool:
    """Tell whether the process of a local job runs; submitit knows only those that it started."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and "submitit" in " ".join(
            process.cmdline()
        )
    except psutil.Error:
        return False


def _reports(training: Training, fold: int) -> list[StepReport]:
    """Return what a member has written so far."""
    for path in (training.history(fold), training.folder(fold) / HISTORY):
        try:
            return read_history(path.read_bytes())
        except FileNotFoundError:
            continue
    return []


def _require_success(job: _MemberJob, fold: int) -> None:
    """Raise what went wrong in a job."""
    try:
        error = job.result()
    except (FailedJobError, UncompletedJobError) as failure:
        lines = [line for line in str(failure).splitlines() if line.strip(" -")]
        reason = next((line for line in reversed(lines) if "Error" in line), lines[0])
        message = (
            f"job {job.job_id} of member {fold} failed: {reason.strip()}; its log is "
            f"{job.paths.stderr}; the same command goes on"
        )
        raise BackendError(message) from failure
    if error is not None:
        error.add_note(f"member {fold}, job {job.job_id}")
        raise error
