"""`qcore imatrix`, and `--imatrix` of quantize and compare."""

import tiny

from qcore.models import imatrix


def test_a_file_is_written_and_read_by_a_recipe(said, tmp_path, own_home):
    model, file = tiny.checkpoint("llama", tmp_path / "model"), tmp_path / "imatrix.gguf"
    status, out, _ = said("imatrix", model, "--out", file, "--calibration-tokens", 1024)
    assert status == 0 and "14 weights" in out and "1,024 tokens" in out
    found = imatrix.read(file)
    assert {name.partition(".attn_q")[0] for name in found.values if "attn_q" in name} == {"blk.0", "blk.1"}
    status, out, _ = said(
        "quantize", model, "--recipe", "gguf-q4_0-imatrix", "--imatrix", file, "--out", tmp_path / "out"
    )
    assert status == 0 and (tmp_path / "out" / "qcore.json").is_file()


def test_a_matrix_that_no_recipe_reads_is_refused(said, tmp_path, own_home):
    model, file = tiny.checkpoint("llama", tmp_path / "model"), tmp_path / "imatrix.gguf"
    file.write_bytes(b"")
    arguments = ("quantize", model, "--imatrix", file, "--out", tmp_path / "out", "--recipe")
    status, _, error = said(*arguments, "gguf-q4_0")
    assert status == 2 and "Add -imatrix" in error
    status, _, error = said(*arguments, "gguf-q4_0-imatrix")
    assert status == 2 and "imatrix.gguf cannot be read" in error


def test_nothing_but_an_importance_matrix_is_replaced(said, tmp_path, own_home):
    model, file = tiny.checkpoint("llama", tmp_path / "model"), tmp_path / "notes.txt"
    file.write_text("my notes, which are longer than a few bytes")
    status, _, error = said("imatrix", model, "--out", file)
    assert status == 2 and "notes.txt cannot be read as an importance matrix" in error
    assert file.read_text().startswith("my notes")
