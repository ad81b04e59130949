"""What the page computes itself, against the same in Python; names that the server gives and the page
draws.

The page's TypeScript is stripped of its types by the compiler that came with the page and run by
Node, so these tests need `npm ci` in page/.
"""

import csv
import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tunewright.studio.series import figures_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "page"
ASSETS = ROOT / "src" / "tunewright" / "assets" / "studio"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(
    NODE is None or not (PAGE / "node_modules" / "typescript").is_dir(),
    reason="needs Node and `npm ci` in page/",
)
RUN = """
import ts from 'typescript'
import { readFileSync } from 'node:fs'
const options = { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 }
const text = ts.transpileModule(readFileSync(process.argv[1], 'utf8'), { compilerOptions: options })
const made = await import('data:text/javascript,' + encodeURIComponent(text.outputText))
const asked = JSON.parse(readFileSync(0, 'utf8'))
console.log(JSON.stringify(asked.map(([name, ...args]) => {
  const found = made[name](...args)
  return found === undefined ? args[0] : found
})))
"""


def _run(source, calls):
    """The results of some calls of a module, in order; the first argument where it returns nothing
    and changes that."""
    done = subprocess.run(
        [NODE, "--input-type=module", "-e", RUN, "--", str(PAGE / "src" / source)],
        input=json.dumps(calls), capture_output=True, text=True, cwd=PAGE, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_smoothing_is_the_weighted_mean_of_all_that_came_before():
    points = [[1, 3.0], [2, 1.0], [5, None], [6, 4.0], [7, 0.5]]
    weight = 0.7
    found = _run("lib/curves.ts", [["smooth", points, weight], ["smooth", points, 0]])
    expected, seen = [], []
    for step, value in points:
        if value is None:
            expected.append([step, None])
            continue
        seen.append(value)
        shares = [weight ** (len(seen) - 1 - n) for n in range(len(seen))]
        mean = sum(s * v for s, v in zip(shares, seen, strict=True)) / sum(shares)
        expected.append([step, pytest.approx(mean)])
    assert found == [expected, points]


@needs_node
def test_a_step_that_comes_again_counts_as_it_came_last():
    stream = [(1, 5.0), (2, 4.0), (3, 3.0), (2, 4.5), (3, None), (4, 2.0), (0, 9.0)]
    points, calls = [], []
    for step, value in stream:
        calls.append(["put", [list(p) for p in points], step, value])
        points = sorted(({**dict(points), step: value}).items())
    for found, call in zip(_run("lib/curves.ts", calls), calls, strict=True):
        kept = {**{step: value for step, value in call[1]}, call[2]: call[3]}
        assert found == [list(pair) for pair in sorted(kept.items())]


@needs_node
def test_curves_are_saved_as_csv():
    lines = [
        {"label": "loss, training", "points": [[1, 0.5], [2, 0.25]]},
        {"label": 'held "out"', "points": [[2, 1.5], [4, None]]},
    ]
    [text] = _run("lib/curves.ts", [["csv", lines, "step"]])
    assert list(csv.reader(io.StringIO(text))) == [
        ["step", "loss, training", 'held "out"'],
        ["1", "0.5", ""],
        ["2", "0.25", "1.5"],
        ["4", "", ""],
    ]


EVENTS = [
    {"event": "started", "time": 1.0, "step": 0, "total_steps": 3},
    {"event": "step", "time": 2.0, "step": 1, "loss": 0.5, "terms": {"sft": 0.4, "z_loss": 0.1},
     "learning_rate": 1e-3, "gradient_norm": "NaN", "seconds": 0.5, "tokens_per_second": 100,
     "memory_bytes": 1024, "applied": True, "passes": 1, "figures": {"reward": 0.5, "kl": "inf"}},
    {"event": "evaluation", "time": 3.0, "step": 1, "held_out_loss": 0.7,
     "figures": {"accuracy": 0.5, "note": None}},
    {"event": "answers", "time": 3.0, "step": 1, "answers": [{"question": "?", "answer": "!"}]},
    {"event": "step", "time": 4.0, "step": 2, "loss": None, "terms": [], "figures": "none"},
    {"event": "checkpoint", "time": 5.0, "step": 2, "folder": "step-000002"},
]  # fmt: skip


@needs_node
def test_the_page_takes_the_same_points_from_an_event_as_the_server():
    for event, found in zip(
        EVENTS, _run("lib/curves.ts", [["figuresOf", event] for event in EVENTS]), strict=True
    ):
        ours = {k: v if math.isfinite(v) else None for k, v in figures_of(event).items()}
        assert found == ours, event


def _entries(source, name):
    """The keys of an object literal in a source of the page."""
    text = (PAGE / "src" / source).read_text(encoding="utf-8")
    body = text[text.index(f"const {name}") :]
    body = body[: body.index("\n  }\n")]
    return set(re.findall(r"^    '?([a-z][a-z-]*)'?:", body, re.MULTILINE))


def test_every_picture_of_a_method_or_an_objective_is_drawn():
    drawn = _entries("parts/Picture.svelte", "pictures")
    kinds = json.loads((ASSETS / "kinds.json").read_text(encoding="utf-8"))
    named = {kind["picture"] for axis in kinds.values() for kind in axis.values()}
    assert named | {"plugin", "other"} <= drawn


def test_every_recipe_has_an_icon():
    recipes = json.loads((ASSETS / "recipes" / "recipes.json").read_text(encoding="utf-8"))
    icons = _entries("parts/Icon.svelte", "shapes")
    assert {recipe["icon"] for recipe in recipes} <= icons


def test_every_place_of_the_side_bar_has_a_screen():
    text = (PAGE / "src" / "screens.ts").read_text(encoding="utf-8")
    screens = dict(re.findall(r"(\w+): \(\) => import\('\./screens/(\w+)\.svelte'\)", text))
    places = re.findall(r"\{ name: '(\w+)', icon: '(\w+)'", text)
    assert len(places) >= 11
    assert {name for name, _ in places} <= screens.keys()
    assert {icon for _, icon in places} <= _entries("parts/Icon.svelte", "shapes")
    for file in screens.values():
        assert (PAGE / "src" / "screens" / f"{file}.svelte").is_file()
