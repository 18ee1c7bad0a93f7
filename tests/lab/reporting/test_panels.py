"""Figures say what they show, name whose each part is, and can be told apart without colour."""

from __future__ import annotations

import math
import re
from importlib.resources import files
from xml.etree import ElementTree

import pytest

from znorm.lab.reporting.panels import Line, Panel, line_panel
from znorm.lab.reporting.strokes import COLOURS, MARKS, strokes_of
from znorm.lab.reporting.svg import as_svg, style

SVG = "{http://www.w3.org/2000/svg}"


def panel(points: int = 3, title: str = "Test accuracy, %") -> Panel:
    strokes = strokes_of(["Baseline", "Own <b> & 'more'"])
    lines = [
        Line(
            label,
            stroke,
            {epoch: 70.0 + place + epoch for epoch in range(1, points + 1)},
            dict.fromkeys(range(1, points + 1), 69.0 + place),
            dict.fromkeys(range(1, points + 1), 80.0 + place),
        )
        for place, (label, stroke) in enumerate(strokes.items())
    ]
    return line_panel(title, "epoch", lines, level=("floor: colours", 71.05))


def test_a_figure_has_a_role_a_label_and_its_last_values_in_words() -> None:
    root = ElementTree.fromstring(panel().svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == "Test accuracy, % by epoch"
    assert root.findtext(f"{SVG}desc") == (
        "2 lines, at their ends: Baseline 73.00 (69.00 to 80.00) at epoch 3; Own <b> & 'more' "
        "74.00 (70.00 to 81.00) at epoch 3. floor: colours: 71.05."
    )


def test_every_part_of_a_method_is_marked_as_its() -> None:
    root = ElementTree.fromstring(panel().svg)
    marked = [one.attrib["data-method"] for one in root.iter() if "data-method" in one.attrib]
    assert sorted(marked) == ["m0", "m0", "m1", "m1"]


def test_names_within_two_figures_are_apart_and_lead_somewhere() -> None:
    texts = [panel().svg, panel(4).svg, panel(title="Train loss").svg]
    names = [set(re.findall(r' id="([^"]+)"', text)) for text in texts]
    assert all(names)
    assert len(set.union(*names)) == sum(map(len, names))
    for text, own in zip(texts, names, strict=True):
        found = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
        assert found == own
        assert "<style" not in text  # it would be one for the whole page


def test_the_values_stand_where_the_points_are() -> None:
    made = panel()
    values = made.readout
    assert values["at"] == ["1", "2", "3"]
    assert [line["label"] for line in values["lines"]] == ["Baseline", "Own <b> & 'more'"]
    assert values["lines"][0]["values"][0] == "71.00 (69.00 to 80.00)"
    # matplotlib's own marks on the axis: of the ticks at 1, 2 and 3.
    uses = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', made.svg)
    bottom = values["box"][1]
    ticks = {float(x) for x, y in uses if math.isclose(float(y), bottom, abs_tol=0.1)}
    for x in values["x"]:
        assert any(math.isclose(x, tick, abs_tol=0.1) for tick in ticks), (x, ticks)


def test_a_hole_in_a_line_is_no_value() -> None:
    (stroke,) = strokes_of(["a"]).values()
    made = line_panel("t", "epoch", [Line("a", stroke, {1: math.nan, 2: 3.0})])
    assert made.readout["lines"][0]["values"] == [None, "3.000"]
    assert not line_panel("t", "epoch", []).readout


def test_no_two_of_many_methods_look_alike_even_without_colour() -> None:
    looks = list(strokes_of(f"method {n}" for n in range(35)).values())
    assert len({(one.dashes, one.mark) for one in looks}) == 35
    assert len({one.key for one in looks}) == 35
    again = strokes_of(["a", "b", "a"])
    assert list(again) == ["a", "b"]
    for one in looks[:7]:
        assert one.colour in one.sample
        assert MARKS[one.mark] in one.sample


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_by_hand() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_colours_stand_out_from_the_page_in_light_and_in_dark() -> None:
    page = files("znorm.lab.reporting").joinpath("page.html.j2").read_text()
    themes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", rule))
        for rule in re.findall(r":root \{(.*?)\}", page)
    ]
    assert len(themes) == 2
    for theme in themes:
        for colour in COLOURS:
            assert contrast(colour, theme["paper"]) >= 3, (colour, theme["paper"])
        for text in ("ink", "soft", "link", "warn"):
            for ground in ("paper", "tint"):
                assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)


def test_a_figure_without_words_has_no_empty_description() -> None:
    with style():
        from matplotlib.figure import Figure

        figure = Figure()
        figure.subplots()
        assert "<desc" not in as_svg(figure, label="empty")
