"""Train a teacher and every arm of the paper's tables on one data set, and write the table.

    python recipes/crack_oc20/run.py --data runs/oc20_ostar --out runs/crack_oc20 --cpu

Each run is the command that one would type, `python -m kd_plugins.fairchem --mode train ...`, in a
process of its own, one after another. A finished run leaves ``OUT/records/<arm>-seed<k>.json`` and
is not done again; a run that was interrupted goes on from its last checkpoint. Every figure comes
from one place: a validation of the last checkpoint, with its averaged weights, after training.
report.py turns the records into results.json, seeds.csv, table.md and arms.png.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from kd_plugins.files import write_bytes

HERE = Path(__file__).resolve().parent
ARM_FILES = HERE.parents[1] / "configs" / "fairchem" / "arms"
ARMS = (
    "vanilla",
    "pretrained",
    "n2n",
    "hessian",
    "crack",
    "crack_n2n",
    "each",
    "instance",
    "instance_n2n",
)
TEACHER = "teacher"
PACKAGES = ("kd_plugins", "fairchem-core", "torch")
SHAPING = (
    "teacher_checkpoint",
    "teacher_weights",
    "teacher_layers",
    "teacher_epochs",
    "max_epochs",
)


@dataclass(frozen=True)
class Study:
    """What every run of a study shares; a folder holds one study.

    Args:
        data: folder that prepare.py wrote.
        out: folder of the study.
        config: fairchem YAML of the student without arm, data set and teacher.
        teacher_checkpoint: a trained teacher; without one a teacher is trained.
        teacher_weights: ``ema`` or ``raw``, for a file that holds both.
        teacher_layers: depth of the teacher that is trained.
        teacher_epochs: of its training.
        max_epochs: of the students' training; without it that of ``config``.
        cpu: train on the CPU.
    """

    data: Path
    out: Path
    config: Path
    teacher_checkpoint: Path | None
    teacher_weights: str | None
    teacher_layers: int
    teacher_epochs: int
    max_epochs: int | None
    cpu: bool

    @property
    def fairchem(self) -> Path:
        """Where fairchem keeps checkpoints and logs."""
        return self.out / "fairchem"

    def checkpoint(self, name: str) -> Path:
        """Return where a run's last checkpoint lies."""
        return self.fairchem / "checkpoints" / name / "checkpoint.pt"

    def record(self, name: str) -> Path:
        """Return where a finished run's record lies."""
        return self.out / "records" / f"{name}.json"

    @property
    def teacher(self) -> dict[str, Any]:
        """Return the teacher as the arms' configurations name it."""
        if self.teacher_checkpoint is None:
            return {"checkpoint": str(self.checkpoint(run_name(TEACHER, 0))), "weights": "ema"}
        weights = {"weights": self.teacher_weights} if self.teacher_weights else {}
        return {"checkpoint": str(self.teacher_checkpoint), **weights}


def run_name(arm: str, seed: int) -> str:
    """Return the name of a run, which is fairchem's timestamp id too."""
    return f"{arm}-seed{seed}"


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all; the NaN of a run that diverged stays."""
    write_bytes(path, f"{json.dumps(content, indent=2)}\n".encode())


def base_config(study: Study) -> dict[str, Any]:
    """Return the student's configuration, resolved by fairchem."""
    from fairchem.core.common.utils import load_config

    return load_config(str(study.config))[0]


def description(study: Study, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return all that decides the figures of a study, as JSON has it."""
    content = {
        "settings": {name: getattr(study, name) for name in SHAPING},
        "data": manifest,
        "base": base_config(study),
        "arms": {arm: yaml.safe_load((ARM_FILES / f"{arm}.yml").read_text()) for arm in ARMS},
    }
    return json.loads(json.dumps(content, default=str))


def claim_folder(study: Study, manifest: dict[str, Any]) -> None:
    """Note what is studied, or check that the folder already holds this very study.

    Raises:
        SystemExit: if it holds another one.
    """
    path, ours = study.out / "study.json", description(study, manifest)
    if not path.is_file():
        write_json(path, ours)
    found = json.loads(path.read_text())

    # A folder of before an arm was added to the recipe goes on, with that arm as it is now.
    found["arms"] = {**ours["arms"], **found.get("arms", {})}
    differing = " and ".join(key for key in ours if found.get(key) != ours[key])
    if differing:
        raise SystemExit(f"{study.out} holds a study with other {differing}; choose another --out")


def dataset(study: Study, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the data set of all runs, with the data's own normalizer unless the base has one."""
    train: dict[str, Any] = {"src": str(study.data / "train" / "structures.db")}
    if "transforms" not in base_config(study).get("dataset", {}).get("train", {}):
        train["transforms"] = {"normalizer": manifest["normalizer"]}
    return {"train": train, "val": {"src": str(study.data / "val" / "structures.db")}}


def write_configs(study: Study, manifest: dict[str, Any]) -> None:
    """Write each run's YAML: the base and an arm, included, and what only this machine knows."""
    shared = {"dataset": dataset(study, manifest)}
    if study.max_epochs is not None:
        shared["optim"] = {"max_epochs": study.max_epochs}
    for arm in ARMS:
        includes = [str(study.config), str(ARM_FILES / f"{arm}.yml")]
        task = {"distill": {"teacher": study.teacher}}
        write_yaml(study, arm, {"includes": includes, "task": task, **shared})
    teacher = {
        "includes": [str(study.config)],
        "trainer": "equiformerv2_forces",
        "task": {"distill": None},  # takes the included block away
        "model": {"backbone": {"num_layers": study.teacher_layers}},
        "optim": {"max_epochs": study.teacher_epochs},
    }
    write_yaml(study, TEACHER, {**shared, **teacher})


def write_yaml(study: Study, arm: str, config: dict[str, Any]) -> None:
    """Write one run's configuration."""
    folder = study.out / "configs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{arm}.yml").write_text(yaml.safe_dump(config, sort_keys=False))


def command(study: Study, arm: str, seed: int, mode: str) -> list[str]:
    """Return what follows `python -m kd_plugins.fairchem` for a run."""
    words = ["--mode", mode, "--config-yml", str(study.out / "configs" / f"{arm}.yml")]
    words += ["--timestamp-id", run_name(arm, seed), "--run-dir", str(study.fairchem)]
    words += ["--seed", str(seed), *(["--cpu"] if study.cpu else [])]
    return words if arm == TEACHER else [*words, f"--task.distill.seed={seed}"]


def train(study: Study, arm: str, seed: int, bar: tqdm) -> None:
    """Train in a process of its own, with the last line of its log beside the progress bar.

    Raises:
        SystemExit: with the end of the log, if training fails.
    """
    log = study.out / "logs" / f"{run_name(arm, seed)}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "kd_plugins.fairchem", *command(study, arm, seed, "train")]
    with log.open("a") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
    try:
        while process.poll() is None:
            bar.set_postfix_str(latest_step(log))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=2.0)
    finally:
        process.terminate()
    if process.returncode:
        ending = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise SystemExit(f"{ending}\n{run_name(arm, seed)} failed; the whole log is {log}")
    if not study.checkpoint(run_name(arm, seed)).is_file():
        raise SystemExit(f"{run_name(arm, seed)} took fewer steps than optim.checkpoint_every")


def latest_step(log: Path) -> str:
    """Return the loss and step of fairchem's latest progress line."""
    found = re.findall(r"loss: .*, step: \S+", log.read_text(errors="replace"))
    return found[-1] if found else "starting"


def validate(study: Study, arm: str, seed: int) -> dict[str, float]:
    """Return every metric of a run's last checkpoint, as `--mode validate` computes them."""
    from fairchem.core.common import distutils
    from fairchem.core.common.flags import flags
    from fairchem.core.common.utils import build_config, new_trainer_context

    words = [*command(study, arm, seed, "validate"), "--debug"]
    words += ["--checkpoint", str(study.checkpoint(run_name(arm, seed)))]
    distutils.setup_env_local()
    config = build_config(*flags.get_parser().parse_known_args(words))
    with new_trainer_context(config=config) as context:
        context.task.setup(context.trainer)
        metrics = context.trainer.validate(split="val", disable_tqdm=True)
        model = context.trainer._unwrapped_model
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        steps = context.trainer.step
    del context, model
    release_memory()
    values = {name: float(metric["metric"]) for name, metric in metrics.items()}
    return {"n_parameters": n_parameters, "steps": steps, **values}


def release_memory() -> None:
    """Give the validated models' memory back before the next training starts beside us."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep fairchem's own messages out of the progress bar's way."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def finish(study: Study, arm: str, seed: int, bar: tqdm) -> None:
    """Bring one run to its record."""
    name = run_name(arm, seed)
    bar.set_description(name)
    if not study.record(name).is_file():
        start = time.perf_counter()
        train(study, arm, seed, bar)
        seconds = time.perf_counter() - start
        with quiet():
            metrics = validate(study, arm, seed)
        packages = {package: version(package) for package in PACKAGES}
        record = {"arm": arm, "seed": seed, "seconds": seconds, "packages": packages}
        write_json(study.record(name), {**record, "metrics": metrics})
    bar.update()


def run(study: Study, arms: list[str], seeds: list[int]) -> None:
    """Bring a study to its table."""
    from kd_plugins.fairchem import compat

    compat.install()
    manifest = json.loads((study.data / "manifest.json").read_text())
    claim_folder(study, manifest)
    write_configs(study, manifest)
    runs = [(arm, seed) for seed in seeds for arm in arms]
    if study.teacher_checkpoint is None:
        runs.insert(0, (TEACHER, 0))
    with tqdm(total=len(runs), unit=" runs") as bar:
        for arm, seed in runs:
            finish(study, arm, seed, bar)
    subprocess.run([sys.executable, str(HERE / "report.py"), str(study.out)], check=True)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--config", type=Path, default=HERE / "small.yml", help="base YAML")
    parser.add_argument("--teacher-checkpoint", type=Path, help="default: train a teacher")
    parser.add_argument("--teacher-weights", choices=("ema", "raw"), help="if it holds both")
    parser.add_argument("--teacher-layers", type=int, default=4)
    parser.add_argument("--teacher-epochs", type=int, default=25)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-epochs", type=int, help="of the students; default: of the YAML")
    parser.add_argument("--cpu", action="store_true")
    return parser


def main() -> None:
    """Run the command line."""
    options = vars(parser().parse_args())
    arms, seeds = options.pop("arms"), options.pop("seeds")
    paths = ("data", "out", "config", "teacher_checkpoint")
    for name in paths:
        options[name] = options[name].resolve() if options[name] else None
    if not (options["data"] / "manifest.json").is_file():
        raise SystemExit(f"{options['data']}: no prepared folder; run prepare.py first")
    run(Study(**options), arms, seeds)


if __name__ == "__main__":
    main()
