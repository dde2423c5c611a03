"""Every block of README, docs and recipes is right, as far as `tests.documents` can tell."""

from __future__ import annotations

import pytest

from tests import documents
from tests.documents import Absent, Block, blocks, command_faults, faults, python_faults

PAGES = dict(documents.pages())
BLOCKS = [block for page, text in PAGES.items() for block in blocks(text, page)]
INLINE = sorted({line for text in PAGES.values() for line in documents.inline_commands(text)})

BAD_COMMANDS = [
    ("kd-plugins lable a.xyz", "invalid choice: 'lable'"),
    ("kd-plugins label a.xyz --teacher emt", "required: --store"),
    ("kd-plugins label a.xyz --teacher emtt --store b", "unknown teacher 'emtt'"),
    ("kd-plugins label a.xyz --teacher emt colour=red --store b", "colour"),
    ("kd-plugins evaluate --student emt --out a --require force_rmse", "expected a metric"),
    ("kd-plugins compare recipes/no.yml --out a", "no such file"),
    ("python recipes/chgnet_organic/elastic.py --uot a", "--tensors"),
    ("python recipes/no/such.py", "no file"),
    ("python benchmarks/labelling.py --colour red", "unrecognized arguments"),
    ("pip install '.[chgnt]'", "no extra 'chgnt'; did you mean 'chgnet'?"),
    ("make quickstrat", "quickstrat"),
    ("frobnicate --all", "no check for 'frobnicate'"),
    ("ase covnert a b", "invalid choice"),
]
BAD_PYTHON = [
    ("def f(:", "invalid syntax"),
    ("from kd_plugins import TargetStroe", "kd_plugins has no TargetStroe"),
    ("import kd_plugins.stroe", "No module named"),
    ("print(database)", "database comes from nowhere on this page"),
]
BAD_YAML = [
    ("a: [1", "no YAML"),
    ("- 1", "no mapping"),
    ("task: {distill: {colour: red}}", "unknown key"),
    ("trainer: ocp\ntask: {distill: {targets: a, student: {initialize: scratch}, terms: "
     "{crack: {weight: 1}}}}", "none of ours"),
    ("arms: {a: {}}", "missing"),
    ("colour: red", "no check for a YAML with the key 'colour'"),
]  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_block_is_right(block: Block) -> None:
    """Its commands are parsed, its YAML read, its Python compiled and its imports made."""
    python = [one.text for one in BLOCKS if one.language == "python" and _is_known(one, block)]
    defined = [name for text in python for name in documents.names_of(text)]
    try:
        assert faults(block, defined) == []
    except Absent as host:
        pytest.skip(f"{host} is not installed")


def _is_known(earlier: Block, block: Block) -> bool:
    """Return whether a reader of a block has seen another; README shows parts of other pages."""
    above = earlier.page == block.page and earlier.line < block.line
    return above or (block.page == "README.md" and earlier.page.startswith("docs/"))


@pytest.mark.parametrize("line", INLINE)
def test_a_command_within_a_sentence_is_right(line: str) -> None:
    try:
        assert command_faults(line) == []
    except Absent as host:
        pytest.skip(f"{host} is not installed")


def test_every_page_has_been_looked_at() -> None:
    """Blocks of all kinds are found where a reader sees them."""
    assert {"README.md", "docs/targets.md", "recipes/crack_oc20/README.md"} <= set(PAGES)
    assert {block.language for block in BLOCKS} == {"", "bash", "mermaid", "python", "yaml"}
    assert len(BLOCKS) >= 30


@pytest.mark.parametrize(("line", "says"), BAD_COMMANDS)
def test_a_wrong_command_is_found(line: str, says: str) -> None:
    (fault,) = command_faults(line)
    assert says in fault


@pytest.mark.parametrize(("text", "says"), BAD_PYTHON)
def test_wrong_python_is_found(text: str, says: str) -> None:
    (fault,) = python_faults(text)
    assert says in fault


@pytest.mark.parametrize(("text", "says"), BAD_YAML)
def test_wrong_yaml_is_found(text: str, says: str) -> None:
    (fault,) = documents.yaml_faults(text)
    assert says in fault


def test_a_block_of_an_unknown_language_is_a_fault() -> None:
    (fault,) = faults(Block("a.md", 3, "fortran", "end"))
    assert fault == "a.md:3: no check for a block of 'fortran'"


def test_blocks_are_found() -> None:
    text = "a\n\n    one \\\n      two\n\n    three\n\nb\n```yaml\nc: d\n```\n    no block\n"
    assert [(block.line, block.language, block.text) for block in blocks(text, "a.md")] == [
        (3, "", "one \\\n  two\n\nthree"),
        (9, "yaml", "c: d"),
    ]
    assert documents.commands("a b \\\n  c # d\n# e\nf") == ["a b    c # d", "f"]
