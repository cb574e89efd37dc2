"""Every architecture is dumped as the page says, and the page is what the kept results say."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from tests.architectures import kept
from tests.architectures.examine import examine
from tests.architectures.models import NotBuilt, architectures, build
from tests.architectures.page import CHECKS, page
from tests.architectures.witness import Witness

ROOT = Path(__file__).parents[2]
KEPT = kept.load()
ALL = {(a.family, a.type): a for a in architectures()}
BUILT = [
    (family, kind)
    for family, entries in KEPT["families"].items()
    for kind, entry in entries.items()
    if "not built" not in entry
]

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # of transformers, about sizes nobody would choose


@pytest.fixture(autouse=True)
def one_thread():
    """Small operators are slower on several threads."""
    threads = torch.get_num_threads()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_warning()


@pytest.mark.skipif(
    KEPT["versions"]["transformers"] != transformers.__version__,
    reason="the results are kept for another transformers: python -m tests.architectures --examine",
)
class TestTheKeptResults:
    def test_name_every_class_of_the_mappings(self):
        named = {(f, kind) for f, entries in KEPT["families"].items() for kind in entries}
        assert named == set(ALL)

    def test_at_least_150_classes_that_generate_text_are_built(self):
        assert len([1 for family, _ in BUILT if family in ("causal", "seq2seq")]) >= 150

    @pytest.mark.parametrize(("family", "kind"), BUILT, ids=lambda part: part)
    def test_are_what_an_architecture_does_now(self, family, kind, tmp_path):
        assert examine(ALL[family, kind], tmp_path) == KEPT["families"][family][kind]


@pytest.mark.parametrize(("family", "kind"), BUILT, ids=lambda part: part)
def test_no_architecture_is_let_off(family, kind):
    """What a dump must never be: outputs of another model, or other records than there were."""
    entry = KEPT["families"][family][kind]
    assert entry["outputs"] == entry["left behind"] == ""
    assert entry["positions"] in ("", None)
    assert entry["witness"] == "" or "not complete" in entry["witness"]


def test_the_page_is_what_its_command_prints():
    """The command stands in the page, and is run as it stands."""
    text = (ROOT / "docs" / "coverage.md").read_text("utf-8")
    command = "python -m tests.architectures "
    assert f"    {command}" in text
    words = [sys.executable, *command.split()[1:]]
    printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed == text


def test_the_page_tells_what_fails():
    entry = {"class": "X", "run": "generate()", "records": 3, "experts": {"logits": False}}
    entry |= dict.fromkeys(CHECKS, "") | {"witness": "lacks (0, 'a')", "padded": None}
    families = {"causal": {"good": entry, "bad": {"class": "Y", "not built": "no sizes"}}}
    text = "\n".join(page({"versions": KEPT["versions"], "families": families}))
    assert "| Causal language models | 2 | 1 | 1 of 1 | 0 of 1 | 1 of 1 | 1 of 1 | - |" in text
    assert "| good | X | generate() | 3 | yes | lacks (0, 'a') | yes | yes | - |" in text
    assert "lacks logits |" in text
    assert "- bad (Y): no sizes" in text


def test_a_wrong_dump_is_found(tmp_path, monkeypatch):
    """The checks can fail: a witness of one tensor more, and one of other bytes."""
    leave = Witness.leave

    def lie(self):
        leave(self)
        self.seen[0, "root", "output.more", 0] = torch.zeros(1)
        place = (0, "model.norm", "output", 0)
        self.seen[place] = self.seen[place] + 1

    monkeypatch.setattr(Witness, "leave", lie)
    assert "output.more" in examine(ALL["causal", "llama"], tmp_path)["witness"]


def test_what_cannot_be_built_says_why():
    with pytest.raises(NotBuilt, match="convolutions"):
        build(ALL["speech", "vibevoice"])
