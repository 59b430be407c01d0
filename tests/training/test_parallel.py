"""Members in processes of their own, and as jobs: the same weights, and errors that are told."""

import contextlib
import gc
import getpass
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image as PillowImage

from df2serve.artifact import Ensemble
from df2serve.errors import BackendError, BackendUnavailableError, ConfigError, InputError
from df2serve.testing import CellScene, generate_cells
from df2serve_training._options import parse_jobs
from df2serve_training.ensemble import EnsembleFacts, train_ensemble
from df2serve_training.history import StepReport
from df2serve_training.preflight import check_training_set
from df2serve_training.recipe import Recipe
from df2serve_training.settings import JobSettings

RECIPE = Recipe.model_validate(
    {
        "folds": {"count": 2},
        "sampling": {"patch_shape": [64, 64]},
        "network": {
            "encoder": "tu-test_resnet",
            "weights": "random",
            "options": {"encoder_depth": 4, "decoder_channels": [32, 16, 8, 8]},
        },
        "training": {"steps": 12, "batch_size": 2, "phases": [{"share": 1, "rate": 5e-3}]},
    }
)
TOML = """
[folds]
count = 2
[sampling]
patch_shape = [64, 64]
[network]
encoder = "tu-test_resnet"
weights = "random"
options = { encoder_depth = 4, decoder_channels = [32, 16, 8, 8] }
"""

INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started with
from df2serve.cli import main
main()
"""

SLURM = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/none
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/node
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/node.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=1 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""

Listener = Callable[[StepReport], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for seed in range(4):
        sample = generate_cells(CellScene(shape=(96, 96), n_cells=6), seed)
        PillowImage.fromarray(sample.image[0]).save(folder / f"images/{seed}.png")
        PillowImage.fromarray(sample.mask).save(folder / f"masks/{seed}.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As each of two processes on two threads has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(folder: Path, target: Path, listener: Listener, **options: object) -> Ensemble:
    data = check_training_set(
        folder / "images", folder / "masks", settings=RECIPE.data, folds=RECIPE.folds
    )
    facts = EnsembleFacts(id="small", name="Small")
    return train_ensemble(data, target, RECIPE, facts=facts, listener=listener, **options)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Ensemble:
    """The ensemble of one process."""
    return train(folder, folder / "alone", [].append, device="cpu")


def assert_same(first: Ensemble, second: Ensemble) -> None:
    names = [f"members/fold-{fold}/model.safetensors" for fold in (0, 1)]
    for name in (*names, "out_of_fold.csv", "history.csv"):
        assert first.read(name) == second.read(name), name


@pytest.mark.slow
def test_side_by_side(folder: Path, alone: Ensemble, tmp_path: Path) -> None:
    """An error, a killed process, and then to the end."""
    target, work = tmp_path / "ens", tmp_path / "ens.training"
    work.mkdir()
    (work / "fold-1.checkpoint").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"fold-1.checkpoint is no checkpoint") as caught:
        train(folder, target, [].append, device="cpu,cpu")
    assert caught.value.__notes__ == ["member 1 on cpu"]
    assert not multiprocessing.active_children()
    (work / "fold-1.checkpoint").unlink()

    def kill(report: StepReport) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(BackendError, match=r"member . on cpu ended with code -9"):
        train(folder, target, kill, device="cpu,cpu")
    assert not multiprocessing.active_children()

    seen: list[StepReport] = []
    ensemble = train(folder, target, seen.append, device="cpu, cpu")
    assert {report.member for report in seen} == {0, 1}
    assert not multiprocessing.active_children()
    assert not work.exists()
    assert_same(ensemble, alone)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="process groups of POSIX")
def test_an_interruption_ends_all_processes(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(TOML)
    command = [
        sys.executable, "-c", INTERRUPTIBLE, "train",
        folder / "images", folder / "masks", "-o", tmp_path / "ens", "--recipe", recipe,
        "--device", "cpu,cpu", "--set", "training.steps=100000",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        while not list((tmp_path / "ens.training").glob("fold-*.csv")):
            assert process.poll() is None
            time.sleep(0.2)
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=120)
    assert process.returncode not in {0, None}
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert b"Traceback" not in told


@pytest.mark.slow
# jobs are to outlive whoever submitted them
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_jobs(folder: Path, alone: Ensemble, tmp_path: Path) -> None:
    """An error in a job, a submitter that is interrupted, and one that waits for the same jobs."""
    pytest.importorskip("submitit")
    jobs = JobSettings(executor="local")
    target, work = tmp_path / "ens", tmp_path / "ens.training"
    work.mkdir()
    (work / "fold-1.checkpoint").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"fold-1.checkpoint is no checkpoint") as caught:
        train(folder, target, [].append, device="cpu", jobs=jobs)
    assert "member 1, job " in caught.value.__notes__[-1]
    (work / "fold-1.checkpoint").unlink()

    class Interrupted(Exception):
        pass

    def stop(report: StepReport) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        train(folder, target, stop, device="cpu", jobs=jobs)
    submitted = sorted(path.name for path in (work / "jobs").glob("*_submitted.pkl"))
    again: list[str] = []

    def look(report: StepReport) -> None:
        again[:] = sorted(path.name for path in (work / "jobs").glob("*_submitted.pkl"))

    ensemble = train(folder, target, look, device="cpu", jobs=jobs)
    assert set(again) <= set(submitted)
    assert_same(ensemble, alone)
    del caught
    gc.collect()  # of the jobs, while the warning is ignored


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster of this machine alone, which keeps no accounts of its jobs."""
    programs = [shutil.which(name) for name in ("slurmctld", "slurmd", "sbatch")]
    if None in programs:
        pytest.skip("no SLURM: apt-get install slurmctld slurmd slurm-client")
    with socket.socket() as first, socket.socket() as second:
        ports = []
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    for name in ("controller", "node"):
        (tmp_path / name).mkdir()
    host, user = socket.gethostname().partition(".")[0], getpass.getuser()
    settings = tmp_path / "slurm.conf"
    settings.write_text(
        SLURM.format(host=host, user=user, folder=tmp_path, controller=ports[0], node=ports[1])
    )
    monkeypatch.setenv("SLURM_CONF", str(settings))
    with contextlib.ExitStack() as running:
        for program in programs[:2]:
            log = running.enter_context((tmp_path / "slurm.log").open("ab"))
            process = subprocess.Popen([str(program), "-D"], stdout=log, stderr=log)
            running.callback(process.wait, 30)
            running.callback(process.terminate)
        until = time.monotonic() + 60
        while "idle" not in (state := command("sinfo", "--noheader", "--format=%T")):
            assert time.monotonic() < until, (state, (tmp_path / "slurm.log").read_text())
            time.sleep(0.5)
        yield
        command("scancel", f"--user={user}")


def command(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_slurm(folder: Path, alone: Ensemble, tmp_path: Path) -> None:
    """A job that is cancelled while it waits, as only the queue tells, and then to the end."""
    pytest.importorskip("submitit")
    jobs = JobSettings(executor="slurm", options={"time": 30, "cpus_per_task": 1})
    target = tmp_path / "ens"

    def cancel(report: StepReport) -> None:
        command("scancel", f"--user={getpass.getuser()}")

    with pytest.raises(BackendError, match=r"job \d+ of member . failed"):
        train(folder, target, cancel, device="cpu", jobs=jobs)
    assert not target.exists()
    ensemble = train(folder, target, [].append, device="cpu", jobs=jobs)
    assert_same(ensemble, alone)


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the option time"):
        JobSettings().updated(executor="slurm")
    with pytest.raises(ConfigError, match="name one"):
        train(folder, tmp_path / "a", [].append, device="cpu,cpu", jobs=JobSettings())
    with pytest.raises(ConfigError, match="device"):
        train(folder, tmp_path / "b", [].append, device="cpu,tpu")
    with pytest.raises(ConfigError, match="without --executor"):
        parse_jobs(None, ["time=10"])
    with pytest.raises(ConfigError, match="expected a name and a value"):
        parse_jobs("slurm", ["time"])
    jobs = parse_jobs("slurm", ["time=02:00:00", "gpus_per_node=1"])
    assert jobs == JobSettings(executor="slurm", options={"time": "02:00:00", "gpus_per_node": 1})


def test_clusters_that_cannot_be_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    jobs = JobSettings(executor="slurm", options={"time": 1, "tiem": 2})
    with pytest.raises(BackendUnavailableError, match="there is no SLURM here"):
        train(folder, tmp_path / "a", [].append, device="cpu", jobs=jobs)
    (tmp_path / "srun").touch(mode=0o755)
    with pytest.raises(ConfigError, match=r"Unavailable parameter\(s\): \['tiem'\]"):
        train(folder, tmp_path / "a", [].append, device="cpu", jobs=jobs)
