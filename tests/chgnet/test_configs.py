"""The YAML files of Taniguchi 2024 can be read, and hold the paper's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_plugins.chgnet import Ratios
from kd_plugins.chgnet.settings import read_training
from kd_plugins.config import ConfigError
from tests.house import ROOT

CONFIGS = sorted((ROOT / "configs" / "chgnet").glob("*.yml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_read(path: Path) -> None:
    """And train and validation are not the same structures."""
    settings = read_training(path)
    assert settings.train != settings.validation
    of_the_paper = (32, 0.01) if settings.student.trainable == ("mlp.",) else (4, 0.001)
    assert (settings.optim.batch_size, settings.optim.learning_rate) == of_the_paper
    assert settings.loss.criterion == "MAE"


@pytest.mark.parametrize("name", ["paper_soft", "paper_hard", "paper_mixed", "open_teacher"])
def test_configs_of_the_paper_have_its_protocol(name: str) -> None:
    """100 epochs with CHGNet's own schedule, energies and forces alone."""
    settings = read_training(ROOT / "configs" / "chgnet" / f"{name}.yml")
    assert (settings.optim.epochs, settings.optim.schedule) == (100, "chgnet")
    assert Ratios(hard=settings.loss.hard, soft=settings.loss.soft).task == "ef"
    assert settings.student.trainable == ("mlp.",)


def test_a_row_of_table_1_takes_two_changes() -> None:
    """As the file's first line says."""
    path = ROOT / "configs" / "chgnet" / "paper_mixed.yml"
    changed = read_training(path, ("loss.hard.energy=0.5", "train.size=500"))

    assert changed.loss.hard == {"energy": 0.5, "forces": 1}
    assert changed.train.size == 500


def test_every_wrong_key_and_value_is_named(tmp_path: Path) -> None:
    """Every wrong key and value, by its place."""
    text = (ROOT / "configs" / "chgnet" / "paper_soft.yml").read_text()
    text = text.replace("criterion: MAE", "criterium: MAE").replace("epochs: 100", "epochs: many")
    (tmp_path / "x.yml").write_text(text.replace("soft: {energy: 1", "soft: {enrgy: 1"))

    with pytest.raises(ConfigError) as error:
        read_training(tmp_path / "x.yml")

    for part in ("loss.criterium: unknown key", "optim.epochs: expected a whole number"):
        assert part in str(error.value)

    with pytest.raises(ConfigError, match=r"loss: soft: unknown quantity 'enrgy'.*'energy'"):
        read_training(
            ROOT / "configs" / "chgnet" / "paper_soft.yml", ("loss.soft={enrgy: 1, forces: 1}",)
        )
    with pytest.raises(ConfigError, match="give either epochs or steps"):
        read_training(ROOT / "configs" / "chgnet" / "paper_soft.yml", ("optim.steps=10",))
    with pytest.raises(ConfigError, match="expected a change such as optim.seed=3"):
        read_training(ROOT / "configs" / "chgnet" / "paper_soft.yml", ("optim.seed",))
