"""Names and texts that others chose, on pages and terminals: whatever is in them, they are text."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import sys
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from lab.kit import finished, recorded
from znorm.lab.datasets import Dataset, Split
from znorm.lab.errors import DataError
from znorm.lab.paper.record import Record
from znorm.lab.paper.tables import paper_on_terminal, paper_tables
from znorm.lab.reporting.figures import patches
from znorm.lab.reporting.page import write_page
from znorm.lab.reporting.tables import gather, on_terminal
from znorm.lab.runs.cost import Cost, costs_on_terminal
from znorm.lab.runs.folder import Run
from znorm.lab.runs.survey import Damaged, find

ERROR = "ValueError: unexpected token [/INST] in [batch] :smile: [red]\\[x]"


def made(root: Path, method: str = "baseline", **result: Any) -> Run:
    choices = {"method": method, "model": "resnet56", "epochs": 1}
    metrics = {"test_accuracy": 0.5, "train_loss": 1.0}
    return recorded(root, choices, [metrics], {**finished(metrics), **result})


def page(root: Path, runs: list[Run], damaged: tuple[Damaged, ...] = ()) -> str:
    missing = {run.spec.data_key: DataError("no data here") for run in runs}
    return write_page(root, runs, missing, damaged=damaged).read_text("utf-8")


def printed(table: Any, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=file, width=300).print(table)
    file.flush()
    return raw.getvalue().decode(encoding)


FOLDERS = ["javascript:alert(1)", "nets:good", "a#b", "what?", "100%25", 'a "b" & c', "http:", "ü"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_link_of_a_page_leads_to_its_file(tmp_path: Path, folder: str) -> None:
    _links_lead_to_files(tmp_path, folder)


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere refuse such names")
def test_a_folder_whose_name_is_no_utf8_has_its_page_and_its_links(tmp_path: Path) -> None:
    folder = os.fsdecode(b"b\xfcr")
    text = _links_lead_to_files(tmp_path, folder)
    assert "b%FCr/" in text
    assert "b?r/" in text  # the name of the damaged folder, as text


def _links_lead_to_files(root: Path, folder: str) -> str:
    made(root / folder)
    made(root / folder, "znorm")
    shutil.copytree(next((root / folder).rglob("seed-0")), root / folder / "broken")
    broken = Damaged(root / folder / "broken", f"{root / folder}: not readable")
    text = page(root, find(root), (broken,))
    links = [unescape(found) for found in re.findall(r'href="([^"]*)"', text)]
    links = [found for found in links if not found.startswith("#")]
    assert len(links) > 8
    for found in links:
        parts = urlsplit(found)
        assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
        assert (root / os.fsdecode(unquote_to_bytes(parts.path))).exists(), found
    return text


def test_half_a_surrogate_in_an_error_leaves_the_page_whole(tmp_path: Path) -> None:
    run = made(tmp_path)
    failed = {"status": "failed", "error": "lost \ud800 here \x1b[31m", "metrics": {}}
    (run.folder / "result.json").write_text(json.dumps(failed))
    text = page(tmp_path, [run])
    assert "failed: lost ? here" in text
    assert text.endswith("</html>")
    (table,) = gather(tmp_path, [run])
    assert "failed: lost ? here ?[31m" in printed(on_terminal(table))


def test_brackets_in_an_error_are_shown_as_they_are(tmp_path: Path) -> None:
    run = made(tmp_path, "znorm", status="failed", error=ERROR, metrics={})
    (table,) = gather(tmp_path, [made(tmp_path), run])
    assert f"seed 0 failed: {ERROR}" in printed(on_terminal(table))
    (paper,) = paper_tables(Record("reduced", {"table2": "pcam_mini"}), [table])
    assert f"seed 0 failed: {ERROR}" in printed(paper_on_terminal(paper))


def test_a_model_named_as_an_emoji_is_shown_as_it_is(tmp_path: Path) -> None:
    (table,) = gather(tmp_path, [made(tmp_path)])
    spec = table.spec.model_copy(update={"model": "nets:smile:x"})
    cost = Cost(spec, 1, 1, 1.0, 1.0, 1.0, 1, None)
    assert "nets:smile:x" in printed(costs_on_terminal([cost]))
    named = type(table)(spec, table.runs, table.columns, table.rows, None, "")
    assert "nets:smile:x" in printed(on_terminal(named))


def test_grey_pictures_are_shown_as_such() -> None:
    grey = torch.arange(2 * 16, dtype=torch.uint8).reshape(2, 1, 4, 4)
    split = Split(grey, torch.tensor([0, 1]))
    shown = patches(Dataset(split, split, split, ("a", "b")))
    for (_, (uri,)), image in zip(shown, grey, strict=True):
        content = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
        pixels = np.asarray(Image.open(io.BytesIO(content)))
        assert pixels.tolist() == np.stack([image[0].numpy()] * 3, -1).tolist()
