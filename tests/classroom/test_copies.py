"""my/: handed out once, never overwritten, nothing of the learner's lost."""

from course_lib.classroom import cli, copies, notebooks

from .test_learner import mine, save, solve


def test_the_hand_out_never_overwrites(course):
    assert copies.hand_out(course) == [mine(course)]
    assert not any(cell.get("outputs") for cell in notebooks.read(mine(course)).cells)
    save(course, solve)
    before = mine(course).read_bytes()
    assert copies.hand_out(course) == [] and mine(course).read_bytes() == before


def test_reset_keeps_every_old_file(course, capsys):
    save(course, solve)
    old = mine(course).read_bytes()
    assert cli.main(["reset", "97"], course) == 0 and cli.main(["reset", "97"], course) == 0
    assert "97_lines-old-2.ipynb" in capsys.readouterr().out
    assert (course / "my" / "97_lines-old-1.ipynb").read_bytes() == old
    assert "NotImplementedError" in notebooks.by_role(notebooks.read(mine(course)), "exercise")["97.1"].source
