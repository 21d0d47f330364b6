"""`shoestring report` over sample systems."""

from shoestring.cli.main import run


def test_writes_the_page(lean, tmp_path, capsys):
    run(["measure", "zz-lean", "zz-fat", "--save"])
    capsys.readouterr()
    page = tmp_path / "board.html"
    assert run(["report", "--out", str(page)]) == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert f"wrote {page}" in output.err
    text = page.read_text()
    assert "The zz-lean method" in text
    assert "does it in less" in text
    assert text.startswith("<!DOCTYPE html>")


def test_bad_places_are_named_and_nothing_is_written(lean, tmp_path, capsys):
    assert run(["report", "--out", str(tmp_path / "missing" / "board.html")]) == 2
    assert "does not exist; create it first" in capsys.readouterr().err
    assert run(["report", "--out", str(tmp_path)]) == 2
    assert "is a folder; name a file in it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["modules"]
