"""The garbage collector rests while libraries are read, and works as ever once weights are there."""

import gc
import subprocess
import sys

from helpers.building import make_model, make_tokenizer

from tunewright.core import collector


def test_it_works_as_before_once_weights_are_loaded():
    usual, frozen = gc.get_threshold(), gc.get_freeze_count()
    try:
        collector.work()  # it was not resting: nothing happens
        assert gc.get_freeze_count() == frozen

        collector.rest()
        collector.rest()
        assert gc.get_threshold() == collector.WHILE_IMPORTING
        collector.work()
        assert gc.get_threshold() == usual
        assert gc.get_freeze_count() > frozen
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def test_a_command_rests_and_a_model_ends_that(tmp_path):
    make_model().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import gc, sys\n"
            "from tunewright import cli\n"
            "from tunewright.models import load\n"
            "usual = gc.get_threshold()\n"
            "def app():\n"
            "    print(gc.get_threshold()[0])\n"
            f"    load.load_model({str(tmp_path)!r}, dtype='float32')\n"
            "    print(gc.get_threshold() == usual, gc.get_freeze_count() > 100_000)\n"
            "cli.app = app\n"
            "cli.main()\n"
            "print(gc.isenabled())\n",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == ["100000", "True", "True", "False"]
