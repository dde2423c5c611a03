"""The command kd-plugins: what it prints, what it leaves behind, and its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from kd_plugins import cli
from kd_plugins.store.store import TargetStore

COMMAND = Path(sys.executable).with_name("kd-plugins")
TEACHERS = '''
from ase.calculators.emt import EMT

class Picky(EMT):
    """Knows no nickel."""
    def calculate(self, atoms=None, *args, **kwargs):
        if "Ni" in atoms.symbols:
            raise RuntimeError("no nickel")
        super().calculate(atoms, *args, **kwargs)

def picky(asap_cutoff=False):
    return Picky(asap_cutoff=asap_cutoff)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four crystals, a teacher, and a file that must not pass for a package."""
    crystals = [bulk(symbol, cubic=True) for symbol in ("Cu", "Ag", "Au", "Ni")]
    for index, atoms in enumerate(crystals):
        atoms.rattle(0.1, seed=index)
    ase.io.write(tmp_path / "metals.extxyz", crystals)
    (tmp_path / "own_teacher.py").write_text(TEACHERS)
    (tmp_path / "tqdm.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    """Run a line here; return exit code, output and errors."""
    code = cli.main(line.split())
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def in_a_shell(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([COMMAND, *words], env=settings, capture_output=True, text=True)


LABEL = "label metals.extxyz --teacher emt --store targets"


def test_a_teacher_of_ones_own_in_a_shell(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a user would type it, with a teacher that lies in this folder; 1 says that some failed."""
    words = ["label", "metals.extxyz", "--store", "targets"]
    words += ["--teacher", "own_teacher:picky", "asap_cutoff=true"]
    done = in_a_shell(*words)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("labelled 3, there already 0, failed 1 in ")
    assert done.stdout.endswith(" s on cpu: targets\n")
    assert "why they failed stands in targets/failures.jsonl" in done.stderr
    assert TargetStore.open("targets").manifest.teacher == "own_teacher:picky asap_cutoff=true"
    code, said, _ = run(capsys, "verify targets")
    assert code == 0
    assert "structures:  3, failed to be labelled: 1\nevery record is whole\n" in said


def test_wrong_words_in_a_shell(folder: Path) -> None:
    """Exit code 2, one line, no traceback."""
    done = in_a_shell("label", "nowhere.xyz", "--teacher", "emt", "--store", "targets")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: nowhere.xyz: no such file; expected one with structures\n"


def test_the_same_command_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And says what was there already."""
    assert run(capsys, LABEL)[1].startswith("labelled 4, there already 0, failed 0 in ")
    assert run(capsys, LABEL)[1].startswith("labelled 0, there already 4, failed 0 in ")
    more = [*ase.io.read("metals.extxyz", ":"), bulk("Pd"), bulk("Pt")]
    ase.io.write("metals.extxyz", more)
    code, said, _ = run(capsys, LABEL)
    assert code == 0
    assert said.startswith("labelled 2, there already 4, failed 0 in ")


def test_structures_that_failed_are_tried_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until then the exit code is 1; the rest is kept."""
    words = "label metals.extxyz --store targets --teacher own_teacher:Picky"
    for there in (0, 3):
        code, said, complaint = run(capsys, words)
        assert code == 1
        assert f"labelled {3 - there}, there already {there}, failed 1" in said
        assert "targets/failures.jsonl" in complaint
    assert "no nickel" in Path("targets/failures.jsonl").read_text()


def test_quantities_and_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With precision where it is said, several teachers, and ids by path."""
    words = f"{LABEL} --quantities energy forces:float16 energy_std --ids path "
    words += "--teacher ase.calculators.lj:LennardJones sigma=2.3 rc=4.0"
    assert run(capsys, words)[0] == 0
    store = TargetStore.open("targets")
    assert store.manifest.dtypes == {
        "energy": "float64",
        "forces": "float16",
        "energy_std": "float32",
    }
    assert store.manifest.teacher == "emt & ase.calculators.lj:LennardJones sigma=2.3 rc=4.0"
    assert set(store.ids()) == {f"metals:{index}" for index in range(4)}
    assert run(capsys, words)[1].startswith("labelled 0, there already 4")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{LABEL} --quantities enrgy", "unknown quantity 'enrgy'; did you mean 'energy'?"),
        (f"{LABEL} --quantities forces:float8", "forces: unknown dtype 'float8'; known: float16"),
        (f"{LABEL} --quantities node_embeddings", "teacher 'emt' gives no 'node_embeddings'; it"),
        (f"{LABEL} --workers 2", "workers: engine 'serial' cannot have 2"),
        (f"{LABEL} --ids mp_id", "structure 'metals:0' has no 'mp_id' to be named by"),
        ("label metals.extxyz --teacher emtt --store s", "unknown teacher 'emtt'; did you mean"),
        ("label own_teacher.py --teacher emt --store s", "own_teacher.py cannot be read beyond"),
        ("label . --teacher emt --store s", ". is a folder; name the files in it"),
        ("label broken.extxyz.xz --teacher emt --store s", "cannot be read beyond its first 0"),
        ("label metals.extxyz --teacher emt --store own_teacher.py", "own_teacher.py"),
        ("label metals.extxyz --teacher no_module:f --store s", "'no_module' cannot be imported"),
        ("label metals.extxyz --teacher own_teacher:pick --store s", "did you mean 'picky'?"),
        (
            "label metals.extxyz --teacher own_teacher:picky x=1 --store s",
            "takes no 'x'; known: asap_cutoff",
        ),
        ("label metals.extxyz --teacher emt metals.extxyz --store s", "expected key=value, got"),
        ("import metals.extxyz --teacher PFP --store s", "has no labels; nothing to import"),
        ("import nowhere.extxyz --teacher PFP --store s", "nowhere.extxyz: no such file"),
        ("export nowhere out.extxyz", "nowhere holds no target store"),
        ("verify nowhere", "nowhere holds no target store (no manifest.json)"),
        ("merge nowhere --into s", "nowhere holds no target store"),
    ],
)
def test_what_cannot_run(
    folder: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    """Exit code 2 and one message."""
    (folder / "broken.extxyz.xz").write_bytes(b"hello")
    code, said, complaint = run(capsys, line)
    assert (code, said) == (2, "")
    (error,) = [found for found in complaint.splitlines() if found.startswith("error: ")]
    assert message in error


@pytest.mark.parametrize("line", ["", "lable", "label", f"{LABEL} --engine dask", "merge a"])
def test_wrong_usage(folder: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    """Also 2, as argparse has it."""
    with pytest.raises(SystemExit) as caught:
        cli.main(line.split())
    assert caught.value.code == 2
    assert "usage: kd-plugins" in capsys.readouterr().err


def test_another_teacher_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether by name or by settings; the store stays as it was."""
    run(capsys, LABEL)
    for other in ("own_teacher:picky", "own_teacher:Picky asap_cutoff=true"):
        line = f"label metals.extxyz --store targets --teacher {other}"
        code, _, complaint = run(capsys, line)
        assert code == 2
        assert "targets was made with another teacher: 'emt', not 'own_teacher" in complaint
    code, _, complaint = run(capsys, f"{LABEL} --quantities energy")
    assert code == 2
    assert "another dtypes" in complaint
    assert run(capsys, "verify targets")[0] == 0


def labelled(index: int) -> Atoms:
    """Return a crystal with labels from elsewhere."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=index)
    forces = np.random.default_rng(index).normal(size=(4, 3)).round(6)
    atoms.calc = SinglePointCalculator(atoms, energy=-10.5 - index, forces=forces)
    return atoms


def test_in_and_out_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was imported is exported, and imported once more is the same."""
    ase.io.write("labels.extxyz", [labelled(index) for index in range(3)])
    code, said, _ = run(capsys, "import labels.extxyz --teacher PFP_v5 --store first")
    assert (code, said) == (0, "first holds 3 structures\n")
    assert run(capsys, "export first out.extxyz")[0] == 0
    code, said, _ = run(capsys, "import out.extxyz --teacher PFP_v5 --store second")
    assert (code, said) == (0, "second holds 3 structures\n")
    first, second = TargetStore.open("first"), TargetStore.open("second")
    assert sorted(first.ids()) == sorted(second.ids()) == [f"labels:{index}" for index in range(3)]
    for name in first.ids():
        for quantity, value in first[name].values.items():
            np.testing.assert_allclose(second[name].values[quantity], value, atol=1e-7)


def test_merging(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stores of one teacher become one; of two teachers they do not."""
    for name, teacher in (("a", "PFP"), ("b", "PFP"), ("c", "other")):
        ase.io.write(f"{name}.extxyz", [labelled(index) for index in range(2)])
        run(capsys, f"import {name}.extxyz --teacher {teacher} --store {name}-store")
    for _ in range(2):
        code, said, _ = run(capsys, "merge a-store b-store --into all")
        assert (code, said) == (0, "all holds 4 structures\n")
    code, _, complaint = run(capsys, "merge a-store c-store --into more")
    assert code == 2
    assert "another teacher" in complaint
    assert run(capsys, "verify all")[0] == 0


def test_verify_tells_of_the_teacher_and_of_damage(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 for a record that is not what was written."""
    run(capsys, LABEL)
    code, said, _ = run(capsys, "verify targets")
    assert code == 0
    assert "teacher:     emt\n" in said
    assert "fingerprint: ase.calculators.emt.EMT(" in said
    assert "quantities:  atomic_energies (float64), energy (float64), forces (float32)" in said
    forces = TargetStore.open("targets").record("metals:2").values["forces"].numpy().tobytes()
    shard = Path("targets/main.lmdb")
    shard.write_bytes(shard.read_bytes().replace(forces, bytes([forces[0] ^ 1]) + forces[1:]))
    done = in_a_shell("verify", "targets")
    assert done.returncode == 1, done.stderr
    assert "metals:2: main.lmdb: the record of 'metals:2' is damaged" in done.stdout


def test_a_stop_by_hand(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is no traceback; the same command goes on."""

    def stop(*words: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("kd_plugins.structures.readers.count_structures", stop)
        code, _, complaint = run(capsys, LABEL)
    assert code == 130
    assert complaint == "stopped; what was written is kept, the same command goes on\n"
    assert run(capsys, LABEL)[0] == 0


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Names the commands."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    said = capsys.readouterr().out
    assert caught.value.code == 0
    assert all(
        f"\n    {word} " in said for word in ("label", "import", "export", "verify", "merge")
    )


FROM_THE_START = """
import builtins, os, runpy, signal, sys
whole, count = builtins.__import__, int(sys.argv.pop(1))

def counted(name, *rest, **more):
    global count
    count -= 1
    if not count:
        os.kill(os.getpid(), signal.SIGINT)
    return whole(name, *rest, **more)

sys.argv[0] = "kd-plugins"
from kd_plugins.cli import main
builtins.__import__ = counted
sys.exit(main())
"""


@pytest.mark.parametrize("count", [1, 40, 400, 2000, 4000])
def test_ctrl_c_while_everything_is_imported(folder: Path, count: int) -> None:
    """In the first seconds of a command, inside any module; no traceback."""
    words = [sys.executable, "-c", FROM_THE_START, str(count), *LABEL.split()]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert done.stderr == "stopped; what was written is kept, the same command goes on\n"


def test_the_command_starts_without_torch() -> None:
    """Else Ctrl-C of its first seconds would be met by nobody."""
    code = "import sys, kd_plugins.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (MemoryError(), "error: out of memory (raised in"),
        (AssertionError("x"), "error: AssertionError: x (raised in tests.test_cli, line"),
        (IndexError("list index out of range"), "with --debug shows how it came about"),
        (KeyError("numbers"), "error: KeyError: numbers (raised in tests.test_cli, line"),
        (ValueError("bad value"), "error: bad value (raised in tests.test_cli, line"),
        (OSError(28, "No space left on device"), "error: raised in tests.test_cli, line"),
        (OSError(28, "No space left on device", "a.json"), "error: a.json: no room on the disk"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "error: 'utf-8' codec"),
    ],
)
def test_nothing_ends_in_a_traceback(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    says: str,
) -> None:
    """But with --debug, wherever it stands."""

    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr("kd_plugins.commands.evaluation._report", fail)
    code, _, complaint = run(capsys, "report . -o a.html")
    assert code == 2 and says in complaint
    assert len(complaint.splitlines()) == 1
    for line in ("--debug report . -o a.html", "report . -o a.html --debug"):
        code, _, complaint = run(capsys, line)
        assert code == 2 and says in complaint and "Traceback (most recent call" in complaint


@pytest.mark.parametrize("settings", [{"LC_ALL": "C"}, {"LANG": "C"}])
def test_any_locale_will_do(folder: Path, settings: dict[str, str]) -> None:
    """Names and contents are UTF-8, and so are those of files that ASE opens."""
    crystal = bulk("Cu", cubic=True)
    crystal.info["note"] = "Å"
    ase.io.write("Zürich.extxyz", crystal)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("LC_")}
    plain |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    words = [COMMAND, "evaluate", "--student", "emt", "--dynamics", "Zürich.extxyz"]
    words += ["--repeats", "1", "--out", "größe"]
    done = subprocess.run(words, env=plain | settings, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert "µs" in done.stdout.decode()
    page = [COMMAND, "report", "größe", "-o", "Seite.html"]
    done = subprocess.run(page, env=plain | settings, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert "Zürich.extxyz" in Path("Seite.html").read_text(encoding="utf-8")


def test_a_terminal_that_lacks_a_letter(folder: Path) -> None:
    """Shows an escape in its place."""
    words = [COMMAND, "evaluate", "--student", "emt", "--dynamics", "cell.extxyz", "--repeats", "1"]
    ase.io.write("cell.extxyz", bulk("Cu", cubic=True))
    settings = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*words, "--out", "out"], env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\\xb5s" in done.stdout


def test_who_reads_may_leave(folder: Path) -> None:
    """As head does."""
    command = f"{COMMAND} report --help | true; {COMMAND} verify . | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_home_in_a_path(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the shell leaves it."""
    monkeypatch.setenv("HOME", str(folder))
    assert run(capsys, "label ~/metals.extxyz --teacher emt --store=~/targets")[0] == 0
    assert (folder / "targets" / "manifest.json").is_file()
    assert run(capsys, "export ~/targets ~/targets.extxyz")[0] == 0
    assert not (folder / "~").exists()
