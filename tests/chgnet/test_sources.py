"""Several sources in one training: labels, a teacher's targets and replay, each with a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from chgnet.data.dataset import collate_graphs
from chgnet.model import CHGNet

from kd_plugins.chgnet import (
    CachedData,
    DataError,
    DistillData,
    DistillLoss,
    FitSettings,
    FrozenTrunk,
    Ratios,
    align_targets,
)
from kd_plugins.chgnet.__main__ import main
from kd_plugins.chgnet.fitting import _collate
from kd_plugins.chgnet.preflight import check_data, check_student
from tests.chgnet import fixtures
from tests.chgnet.fixtures import Labelled, differs
from tests.chgnet.test_distill import LOADS, prefer, run

LABELS = ("energy", "forces", "stress", "magmoms")
RATIOS = Ratios(soft=fixtures.ALL_SOFT, hard={"energy": 0.5, "forces": 2, "magmoms": 0.1})


def loss_of(data: DistillData, criterion: Any = "MAE") -> tuple[float, dict[str, float], Any]:
    """Return loss, errors and gradient of the readout on all of the data as one batch."""
    model = fixtures.student()
    graphs, targets = collate_graphs([data[index] for index in range(len(data))])
    for graph in graphs:
        graph.atom_frac_coord.requires_grad_()

    loss = DistillLoss(RATIOS, criterion)
    value = loss(targets, model(graphs, task="efsm"))["loss"]
    gradients = torch.autograd.grad(value, list(model.mlp.parameters()))
    flat = torch.cat([one.reshape(-1) for one in gradients])
    return float(value.detach()), loss.take_errors(), flat


def assert_same(one: DistillData, other: DistillData, criterion: Any = "MAE") -> None:
    first, second = loss_of(one, criterion), loss_of(other, criterion)
    assert first[0] == pytest.approx(second[0], rel=1e-5)
    assert first[1] == pytest.approx(second[1], rel=1e-5)
    torch.testing.assert_close(first[2], second[2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("criterion", ["MAE", "MSE", "Huber", "norm"])
def test_weight_two_is_the_structure_twice(data: DistillData, criterion: str) -> None:
    """In loss, errors and gradients, whichever source has it."""
    first, second = data.part([0, 1]), data.part([2])
    twice = DistillData.concatenate([first, second, second])
    assert_same(DistillData.concatenate([first, second.weighted(2)]), twice, criterion)


def test_weight_two_is_the_structure_twice_on_features(
    data: DistillData, trunk_folder: Path
) -> None:
    trunk = FrozenTrunk(fixtures.frozen())
    first, second = data.part([0, 1]), data.part([2])
    found = []
    for sources in ([first, second.weighted(2)], [first, second, second]):
        joined = DistillData.concatenate(sources)
        cached = CachedData(joined, trunk, trunk_folder, force_share=0.5, progress=False)
        features, targets = _collate(list(cached))
        loss = DistillLoss(Ratios(soft=fixtures.ALL_SOFT, hard={"energy": 1, "forces": 1}))
        value = float(loss(targets, trunk.predict(features))["loss"].detach())
        found.append((value, loss.take_errors()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def test_weights_by_quantity_multiply_those_of_the_source(data: DistillData) -> None:
    """A factor of 2 for the teacher's forces is these forces twice, and all else once."""
    first, second = data.part([0, 1]), data.part([2])
    forces_alone = second.weighted(
        1, soft={"energy": 0, "stress": 0}, hard=dict.fromkeys(LABELS, 0)
    )
    assert_same(
        DistillData.concatenate([first, second.weighted(soft={"forces": 2})]),
        DistillData.concatenate([first, second, forces_alone]),
    )
    assert_same(
        DistillData.concatenate([first, second.weighted(3).weighted([0.5])]),
        DistillData.concatenate([first, second.weighted(1.5)]),
    )


def test_weight_zero_is_no_structure_and_weight_one_changes_nothing(data: DistillData) -> None:
    first, second = data.part([0, 1]), data.part([2, 3])
    joined = DistillData.concatenate([first, second.weighted([0, 1])])
    assert joined.fingerprint == data.part([0, 1, 3]).fingerprint

    for same in (data.weighted(1.0), DistillData.concatenate([data]), data.weighted(hard={})):
        assert same.fingerprint == data.fingerprint
        assert same.keys == data.keys
        assert all(
            list(one.targets) == list(other.targets)
            for one, other in zip(same.samples, data.samples, strict=True)
        )

    assert data.weighted(2).fingerprint != data.fingerprint
    assert len(data.weighted(0)) == 0


def test_order_of_sources_changes_nothing(data: DistillData) -> None:
    sources = [data.part([0, 1]), data.part([2]).weighted(2), data.part([3]).weighted(0.5)]
    assert_same(DistillData.concatenate(sources), DistillData.concatenate(sources[::-1]))


def test_rows_count_where_their_source_has_a_target(salts: Labelled, data: DistillData) -> None:
    """Labels only, teacher only, and both, in one batch: each mean is over those that have it."""
    noisy = salts.noisy()
    labels = DistillData(noisy[:2], hard=LABELS, progress=False)
    teacher = salts.data(noisy[2:3])
    joined = DistillData.concatenate([labels, teacher, data.part([3])])

    assert joined.keys == data.keys
    assert [sample.source for sample in joined.samples] == [0, 0, 1, 2]
    assert [len(one) for one in joined.by_source()] == [2, 1, 1]

    errors = loss_of(joined)[1]
    for kind, rows in (("hard", [0, 1, 3]), ("soft", [2, 3])):
        alone = loss_of(data.part(rows))[1]
        for name in (one for one in alone if one.startswith(kind)):
            assert errors[name] == pytest.approx(alone[name], rel=1e-5)


@pytest.mark.filterwarnings(LOADS)
@pytest.mark.parametrize("way", ["plain", "cached"])
def test_a_run_with_weights_resumes_as_it_was(
    data: DistillData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """And other weights are another run."""
    prefer(monkeypatch, way)
    settings = FitSettings(epochs=2, batch_size=2)

    def joined(weight: float) -> DistillData:
        return DistillData.concatenate([data.part([0, 1]), data.part([2, 3]).weighted(weight)])

    found, model = run(joined(0.5), tmp_path, settings=settings)
    again, same = run(joined(0.5), tmp_path, settings=settings)
    assert differs(model, same) == 0.0
    assert again.fitted.errors == found.fitted.errors
    assert again.fitted.untrained == found.fitted.untrained
    with pytest.raises((FileExistsError, ValueError), match="other (settings|structures)"):
        run(joined(2), tmp_path, settings=settings)


def shifted(salts: Labelled, folder: Path, by: float) -> DistillData:
    """The salts with targets of CHGNet itself, whose energies have another zero."""

    def lower(name: str, value: torch.Tensor) -> torch.Tensor:
        return value + 2 * by if name == "energy" else value

    return salts.data(store=fixtures.changed_store(salts.own, folder, lower))


def test_a_source_with_another_zero_is_refused_unless_it_is_aligned(
    salts: Labelled, tmp_path: Path
) -> None:
    ratios, model = Ratios(soft=fixtures.ALL_SOFT), fixtures.student()
    plain = salts.data(store=salts.own)
    near, far = (shifted(salts, tmp_path / str(by), by) for by in (0.4, 3.0))

    match = r"source 2.*\+0.40 eV/atom off those of the training data \(source 1\).*source_zero"
    with pytest.raises(DataError, match=match):
        check_student(model, DistillData.concatenate([plain, near]), ratios)
    with pytest.raises(DataError, match=r"training data \(source 2\)(.*\n.*)*3.00 eV/atom above"):
        check_student(model, DistillData.concatenate([plain, far]), ratios)

    for data in (near, far):
        aligned, references = align_targets(model, data)
        check_student(model, DistillData.concatenate([plain, aligned]), ratios)
        for one, other in zip(aligned.samples, plain.samples, strict=True):
            assert one.targets["soft_e"] == pytest.approx(float(other.targets["soft_e"]), abs=1e-4)
            assert torch.equal(one.targets["soft_f"], other.targets["soft_f"])

        again, _ = align_targets(model, data.part([0]), references=references)
        assert again.samples[0].targets["soft_e"] == aligned.samples[0].targets["soft_e"]

    _, references = align_targets(model, far.part([0]))
    with pytest.raises(ValueError, match="align: the energies of .*Ga.* cannot be moved"):
        align_targets(model, far, references=references)


def test_lists_of_sources_in_a_yaml(
    config: Path,
    salts: Labelled,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A list of one block is the block itself; of several each has its targets and its weight."""
    block = f"{{structures: [{tmp_path}/salts.extxyz], store: {salts.store.folder}}}"
    assert main([str(config)]) == 0
    assert main([str(config), f"train=[{block}]", f"out={tmp_path}/one"]) == 0
    first, second = (
        CHGNet.from_file(str(tmp_path / name / "last.pth.tar")) for name in ("run", "one")
    )
    assert differs(first, second) == 0.0

    shifted(salts, tmp_path / "own", 3.0)
    salts_file = f"structures: [{tmp_path}/salts.extxyz]"
    replay = f"{{{salts_file}, store: {tmp_path}/own, weight: 0.5, align: true}}"
    labels = f"{{{salts_file}, hard: {{forces: 2}}}}"
    absent = "{structures: [nowhere.xyz], weight: 0}"
    words = [f"train=[{labels},{replay},{absent}]", f"out={tmp_path}/several"]
    words += ["loss.hard={energy: 1, forces: 1}", "loss.soft={energy: 1, forces: 1}"]
    words += ["train.1.hard={energy: 0, forces: 0}", f"validation={replay}"]
    capsys.readouterr()
    assert main([str(config), *words]) == 0, capsys.readouterr().err

    printed = capsys.readouterr().out
    assert "train[0]: 4 structures, weight 1; from the teacher: nothing; labels: energy" in printed
    assert (
        "train[1]: 4 structures, weight 0.5; from the teacher: energy, forces; labels: none"
        in printed
    )
    lowered = [line for line in printed.splitlines() if "energies lowered by (eV/atom)" in line]
    assert [line.partition(":")[0] for line in lowered] == ["train[1]", "validation"]
    assert lowered[0].partition(":")[2] == lowered[1].partition(":")[2]
    assert "train[2]" not in printed


BAD = {
    "train.weight=-1": "weight: expected a number of 0 or more, got -1",
    "train.soft={energie: 1}": "soft: unknown quantity 'energie'; did you mean 'energy'",
    "train.weight=0": "train: every source has the weight 0",
    "train=[]": "train: every source has the weight 0, or there is none",
    "train.0.weight=2": "train.0: unknown key",
    "train=[{structures: [a.xyz], stor: b}]": "train[0].stor: unknown key; did you mean 'store'?",
    "train=[{structures: [a.xyz]}]": "train[0].store: missing; the loss weighs soft energy",
    "validation={structures: [a.xyz], align: true}": "align: moves a teacher's energies",
}


def test_bad_sources_are_refused(
    config: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for change, message in BAD.items():
        assert main([str(config), change]) == 2, change
        printed = capsys.readouterr().err
        assert message in printed, printed


def test_weights_that_cancel_are_named(data: DistillData, caplog: pytest.LogCaptureFixture) -> None:
    loss = DistillLoss(Ratios(soft={"energy": 1}, hard={"forces": 1}))
    mixed = DistillData.concatenate([data.part([0, 1]).weighted(2), data.part([2, 3])])
    for train, warned in ((data, 0), (mixed, 0), (data.weighted(2), 2)):
        caplog.clear()
        check_data(loss, train, data, batch_size=2)
        assert len(caplog.records) == warned
    assert "all structures with soft energy have the weight 2, which changes" in caplog.text


def test_bad_weights_are_refused(data: DistillData) -> None:
    for arguments, message in (
        (((-1,), {}), "weight: expected a number of 0 or more"),
        ((([1, 2],), {}), "one number or one a structure, got 2 for 4 structures"),
        (((1,), {"soft": {"magmoms": 1}}), "soft: unknown quantity 'magmoms'"),
        (((1,), {"hard": {"energy": float("nan")}}), "hard.energy: expected a number"),
    ):
        with pytest.raises(ValueError, match=message):
            data.weighted(*arguments[0], **arguments[1])
    with pytest.raises(ValueError, match="sources: expected a list of data sets, got none"):
        DistillData.concatenate([])
