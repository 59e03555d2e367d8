"""`compare --files` with real processes: downloads beside recipes, judged against their original."""

import json

import foreign_folders
import pytest
import tiny

from qcore import recipes
from qcore.verbs import export

SMALL = "--tokens 120 --window 32 --prompt-tokens 8 --new-tokens 3 --repeats 1 --generate-tokens 2"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]


def test_a_gguf_file_and_a_folder_of_another_project_are_rows(said, tmp_path):
    original, out = tmp_path / "original", tmp_path / "out.json"
    tiny.sharp("llama").save_pretrained(original)
    tiny.tokenizer().save_pretrained(original)
    export.run(
        str(original), recipes.parse("gguf-q4_0"), tmp_path / "gguf", to="gguf", progress=lambda *step: None
    )
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    folder = foreign_folders.write(tmp_path / "tensors-w4", *foreign_folders.as_compressed("int4-g32"))
    (tmp_path / "text.txt").write_text("It was the best of tokens, it was the worst of tokens. " * 9)
    status, printed, err = said(
        "compare",
        original,
        "--recipes",
        "fp32,gguf-q4_0,int4-g32",
        "--files",
        f"{tmp_path}/gguf/*.gguf,{folder}",
        *SMALL.split(),
        "--text",
        tmp_path / "text.txt",
        "--json",
        out,
    )
    assert status == 0, err
    rows = {row["recipe"]: row for row in json.loads(out.read_text())}
    assert list(rows) == ["fp32", "gguf-q4_0", "int4-g32", f"file:{file.name}", "file:tensors-w4"]
    for download, own in ((f"file:{file.name}", "gguf-q4_0"), ("file:tensors-w4", "int4-g32")):
        row = rows[download]
        assert row["status"] == "ok" and row["quantize_s"] is None and row["decode_tok_s"] > 0
        assert "with its own codes" in row["record"]["notes"][0] and download in printed
        assert row["verdict"]["sentence"] in printed
        # they hold the codes that the recipe chooses
        assert row["kl_mean"] == pytest.approx(rows[own]["kl_mean"], rel=1e-3) and row["kl_mean"] > 1e-3
        assert row["perplexity"] == pytest.approx(rows[own]["perplexity"], rel=1e-4)
        assert row["bits_per_weight"] == pytest.approx(rows[own]["bits_per_weight"], rel=0.05)
