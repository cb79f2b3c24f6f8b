"""Models of one's own in the panel: imported and removed as by the command, with one sentence for what can't be."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest


class Dialogs:
    """The user: which folder they choose, and whether they say yes."""

    def __init__(self) -> None:
        self.folder, self.yes, self.asked = "", True, []

    def confirm(self, text):
        self.asked.append(text)
        return self.yes

    def chooseFolder(self, title):
        return str(self.folder)


@pytest.fixture
def user(panel):
    dialogs = Dialogs()
    panel.widget.modelChooser.dialogs = dialogs
    return dialogs


@pytest.fixture
def mine(command_model, tmp_path):
    """The folder of a small model that nobody has imported."""
    return Path(shutil.copytree(command_model, tmp_path / "mine"))


def installed():
    return sorted(path.name for path in Path(os.environ["CTMICROSR_MODELS"]).iterdir())


def listed(panel):
    return [panel.ui.modelSelector.itemText(index) for index in range(panel.ui.modelSelector.count())]


def imported(panel, user, folder):
    user.folder = folder
    panel.ui.importModelButton.click()


def test_an_imported_model_is_verified_copied_chosen_and_described(panel, user, mine):
    imported(panel, user, mine)
    assert installed() == ["small"]
    assert listed(panel) == ["compact-8x", "small"]
    assert panel.parameters.model == "small"
    assert "Trained on" in panel.ui.cardLabel.text()
    assert "small was verified and imported to" in panel.status
    assert panel.ui.removeModelButton.isEnabled()
    panel.screenshot("imported")


def test_a_dialog_that_is_closed_changes_nothing(panel, user):
    panel.widget.showMessage("before")
    imported(panel, user, "")
    assert (installed(), panel.status, panel.parameters.model) == ([], "before", "compact-8x")


def _altered(mine):
    weights = mine / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")


def _truncated(mine):
    weights = mine / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])


def _named(name):
    def change(mine):
        card = json.loads((mine / "card.json").read_text(encoding="utf-8"))
        (mine / "card.json").write_text(json.dumps({**card, "name": name}), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda mine: (mine / "card.json").unlink(), "not a model folder"),
        (lambda mine: (mine / "card.json").write_text("{"), "damaged"),
        (lambda mine: (mine / "model.safetensors").unlink(), "missing"),
        (lambda mine: (mine / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n."), "can run code"),
        (_altered, "SHA-256 differs"),
        (_truncated, "not a complete safetensors"),
        (_named("../../elsewhere"), "not allowed"),
        (_named("compact-8x"), "already installed"),
        (shutil.rmtree, "not a model folder"),
    ],
)
def test_a_bad_folder_is_one_sentence_and_changes_nothing(panel, user, mine, spoil, sentence):
    spoil(mine)
    imported(panel, user, mine)
    assert sentence in panel.status
    assert "\n" not in panel.status
    assert panel.status.endswith(".")
    assert installed() == []
    assert listed(panel) == ["compact-8x"]
    assert panel.parameters.model == "compact-8x"


def test_a_file_that_the_system_refuses_is_one_sentence(panel, user, mine, monkeypatch):
    from CTMicroSRSlicer import modelchooser

    def refuse(_folder):
        raise PermissionError(13, "Permission denied", "model.safetensors")

    monkeypatch.setattr(modelchooser, "import_model", refuse)
    imported(panel, user, mine)
    assert panel.status.startswith("The system refused model.safetensors (Permission denied);")


def test_the_same_model_again_is_refused_and_the_first_stays(panel, user, mine):
    imported(panel, user, mine)
    imported(panel, user, mine)
    assert "already installed; remove it first" in panel.status
    assert installed() == ["small"]


def test_removing_asks_first_and_deletes_only_the_copy(panel, user, mine):
    imported(panel, user, mine)
    user.yes = False
    panel.ui.removeModelButton.click()
    assert installed() == ["small"]
    assert "Remove the model small" in user.asked[0]
    user.yes = True
    panel.ui.removeModelButton.click()
    assert installed() == []
    assert (mine / "model.safetensors").is_file()
    assert panel.status == "small was removed."
    assert listed(panel) == ["compact-8x"]
    assert panel.parameters.model == "compact-8x"
    assert not panel.ui.removeModelButton.isEnabled()


def test_a_model_that_came_with_the_software_cannot_be_removed(panel, user):
    from CTMicroSRLib.models import find_model

    assert not panel.ui.removeModelButton.isEnabled()
    panel.ui.removeModelButton.click()
    assert user.asked == []
    panel.widget.modelChooser.onRemove()
    assert "came with CTMicroSR and can't be removed" in panel.status
    assert find_model("compact-8x").shipped


def test_a_model_of_another_computers_scene_stays_named_and_cannot_be_removed(panel, user):
    panel.parameters.model = "theirs"
    assert "not installed" in panel.ui.cardLabel.text()
    assert not panel.ui.removeModelButton.isEnabled()


def test_a_model_that_is_in_use_stays_chosen_and_the_reason_is_said(panel, user, mine, monkeypatch):
    imported(panel, user, mine)

    def refuse(folder, _target):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "rename", refuse)
    panel.ui.removeModelButton.click()
    assert "could not be removed (Permission denied); close what uses it" in panel.status
    assert panel.parameters.model == "small"
    assert installed() == ["small"]


def test_what_the_command_imported_meanwhile_is_there_when_the_panel_is_entered(panel, user, mine):
    from CTMicroSRLib.models import import_model, remove_model

    panel.widget.exit()
    import_model(mine)
    panel.widget.enter()
    assert listed(panel) == ["compact-8x", "small"]
    panel.widget.exit()
    remove_model("small")
    panel.widget.enter()
    assert listed(panel) == ["compact-8x"]


def test_an_imported_model_super_resolves(panel, user, mine, specimen):
    imported(panel, user, mine)
    panel.widget.estimateTimer.stop()
    panel.ui.applyButton.click()
    panel.until(lambda: not panel.widget.logic.isRunning)
    assert "is there after" in panel.status
    assert panel.parameters.resultVolume.GetAttribute("CTMicroSR.model") == "small"


def test_importing_and_removing_need_no_torch(repository, mine):
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from CTMicroSRLib.models import *; "
        f"import_model(Path({str(mine)!r})); remove_model('small'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=repository, check=False).returncode == 0
