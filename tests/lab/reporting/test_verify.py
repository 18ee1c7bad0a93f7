"""Numbers of runs in one file, and every number of a page worked out from them again."""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from znorm import lab
from znorm.lab.cli import run as call
from znorm.lab.reporting.page_text import read_page

RESULTS = Path(__file__).parents[3] / "docs" / "results"
HISTORY = "events.jsonl"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of classes and of masks, with their page and their export."""
    root = tmp_path_factory.mktemp("made")
    for name in ("demo", "phantom"):
        runs = root / name
        shutil.copytree(RESULTS / name, runs, ignore=shutil.ignore_patterns("*.png"))
        for path in list(runs.rglob("seed-*")):
            if path.name != "seed-0" or not path.parent.name.startswith(("baseline", "znorm_")):
                shutil.rmtree(path)
        lab.report(runs)
        lab.export_numbers(runs, root / f"{name}.zip")
    return root


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def changed(path: Path, pattern: str, by: str) -> None:
    """Change the first text of a file that fits a pattern."""
    text, times = re.subn(pattern, by, path.read_text(), count=1)
    assert times == 1, pattern
    path.write_text(text)


def repacked(path: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    """Change the files within a zip file."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("name", ["demo", "phantom"])
def test_all_numbers_agree_elsewhere(made: Path, name: str, tmp_path: Path) -> None:
    page = shutil.copy(made / name / "report.html", tmp_path / "sent.html")
    elsewhere = shutil.copy(made / f"{name}.zip", tmp_path / "numbers.zip")
    found = lab.verify(elsewhere, page)
    assert found.differing == ()
    # The cells of the page alone are so many numbers.
    assert found.checked > len(re.findall(r">\d[\d.]*<", Path(page).read_text())) > 30
    assert lab.verify(made / name).checked == found.checked  # with the folder's own page


@pytest.mark.parametrize(
    ("file", "pattern", "by", "said"),
    [
        # A cell, a word of the answer, a text of a figure; what the shown number is made of.
        ("report.html", r'(class="mean">\d+)\.\d', r"\1.0", "Test accuracy, %"),
        pytest.param(
            "report.html", r'(class="answer">)\w+', r"\1Adopt", "page", marks=pytest.mark.slow
        ),
        pytest.param(
            "report.html", r'(title="seed 0">\d+)\.\d', r"\1.0", "page", marks=pytest.mark.slow
        ),
        ("result.json", r'("test_loss": 0\.\d)\d', r"\g<1>0", "result.json test_loss"),
        pytest.param(
            "result.json",
            r'("seconds": )\d+',
            r"\g<1>7",
            "result.json: not what the page",
            marks=pytest.mark.slow,
        ),
        ("events.jsonl", r'("train_loss": 0\.\d)\d', r"\g<1>0", "events.jsonl: not what the page"),
        ("events.jsonl", r'("test_accuracy": 0\.\d)\d', r"\g<1>0", "epoch 1 test_accuracy"),
        pytest.param(
            "spec.json",
            r'"augment": "\w+"',
            '"augment": "flip"',
            "spec.json",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_one_number_changed_by_hand_is_found(
    runs: Path, file: str, pattern: str, by: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = runs / "demo"
    path = next(iter(sorted(demo.rglob(file))))
    if path.parent.parent == demo / "pcam_mini":  # the floor's
        path = next(one for one in sorted(demo.rglob(file)) if one.parent.name == "seed-0")
    changed(path, pattern, by)
    assert call(["report", str(demo), "--verify"]) == 1
    printed = capsys.readouterr()
    assert said in printed.out
    assert printed.err.count("\n") == 1
    assert "differ" in printed.err


def test_another_version_is_said_and_is_no_difference(runs: Path) -> None:
    changed(runs / "demo" / "report.html", r"Made by znorm \S+\.<", "Made by znorm 0.0.7.<")
    found = lab.verify(runs / "demo")
    assert found
    assert any("the page was written by znorm 0.0.7" in remark for remark in found.remarks)


def test_a_count_of_a_case_changed_by_hand_is_found(runs: Path) -> None:
    (path,) = list((runs / "phantom").rglob("znorm__*/seed-0/cases.csv"))
    lines = path.read_text().splitlines()
    at = lines[0].split(",").index("tp")
    cells = lines[-1].split(",")
    cells[at] = str(int(cells[at]) + 7)
    path.write_text("\n".join([*lines[:-1], ",".join(cells)]) + "\n")
    found = lab.verify(runs / "phantom")
    assert any("result.json test_f1:" in line for line in found.differing)
    assert any("cases.csv: not what the page" in line for line in found.differing)


def test_a_file_changed_within_the_zip_is_found_without_a_page(runs: Path) -> None:
    pack = runs / "demo.zip"
    assert lab.verify(pack)

    def change(files: dict[str, bytes]) -> None:
        name = next(name for name in files if name.endswith(HISTORY))
        files[name] = files[name].replace(b'"train_loss": 0.', b'"train_loss": 1.', 1)

    repacked(pack, change)
    (line,) = lab.verify(pack).differing
    assert line.endswith("events.jsonl: not the file that was packed")


def test_the_same_content_has_the_same_bytes_and_no_more_than_it_says(runs: Path) -> None:
    demo = runs / "demo"
    run = next(iter(sorted(demo.rglob("seed-0"))))
    before = (runs / "demo.zip").read_bytes()
    (run / "weights.pt").write_bytes(b"secret weights")
    (run / "picture.png").write_bytes(b"secret picture")
    (run / "env.json").write_text(json.dumps({"znorm": "0.1", "command": ["/home/secret"]}))
    with (run / HISTORY).open("a") as file:
        file.write(json.dumps({"event": "note", "text": "/home/secret"}) + "\n")
    assert call(["report", str(demo), "--no-images", "--export", str(runs / "a.zip")]) == 0
    lab.export_numbers(demo, runs / "b.zip")
    assert (runs / "a.zip").read_bytes() == (runs / "b.zip").read_bytes() != before
    with zipfile.ZipFile(runs / "a.zip") as archive:
        for name in archive.namelist():
            assert b"secret" not in archive.read(name), name
            assert not name.endswith((".pt", ".png", ".html")), name
    page = read_page((demo / "report.html").read_text())
    assert page.record is not None


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b"{}")
        with archive.open("a/seed-0/events.jsonl", "w", force_zip64=True) as file:
            for _ in range(9):
                file.write(bytes(1 << 27))
    return buffer.getvalue()


def zipped(*names: str, manifest: bytes = b"{}") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, manifest)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK no zip at all", "not a whole zip file"),
        (b"", "not a whole zip file"),
        (zipped("a.txt"), "no manifest.json in it"),
        (zipped("manifest.json"), "manifest.json is not that of an export"),
        (zipped("manifest.json", "../seed-0/spec.json"), "which no export does"),
        (zipped("manifest.json", "/etc/seed-0/spec.json"), "which no export does"),
        (zipped("manifest.json", "a\\..\\seed-0/spec.json"), "which no export does"),
        (zipped("manifest.json", "a/seed-0/weights.pt"), "which no export does"),
        (zipped("manifest.json", manifest=b"[" * 100_000), "manifest.json is not that of"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_bad_zip_is_one_line(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sent.zip"
    path.write_bytes(content)
    assert call(["report", str(path), "--verify"]) == 3
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "sent.zip"
    path.write_bytes(bomb())
    assert path.stat().st_size < 1 << 21
    with pytest.raises(lab.DataError, match="would unpack to more than runs ever hold"):
        lab.verify(path)


def test_a_run_without_its_specification_is_named(runs: Path) -> None:
    pack = runs / "demo.zip"
    repacked(pack, lambda files: files.pop(next(n for n in files if n.endswith("spec.json"))))
    with pytest.raises(lab.DataError, match=r"spec\.json is missing; export the runs again"):
        lab.verify(pack)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere.zip", "--verify"], 3, "no such file"),
        ([".", "--verify", "--export", "a.zip"], 2, "--verify writes nothing"),
        ([".", "--export", "a.zip"], 3, "no runs in it"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(["report", *arguments]) == code
    assert said in capsys.readouterr().err


def test_an_export_needs_the_name_of_a_zip_file(runs: Path) -> None:
    with pytest.raises(lab.ConfigurationError, match=r"ending in \.zip"):
        lab.export_numbers(runs / "demo", runs / "numbers")
