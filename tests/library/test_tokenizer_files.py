"""Tokenizer files from strangers: no file outside of the folder is opened, no id makes a list of its length,
and errors of the libraries' native code end in one sentence."""

import json

import pytest
import tiny

from qcore.base.errors import InputError
from qcore.library import loading, tokenizer_files
from qcore.library.loading import load_tokenizer
from qcore.models.checkpoint import Checkpoint

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 258}
SECRETS = "[UNK]\nroot\nsecret\n"


@pytest.fixture
def folder(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text(SECRETS)
    return str(path)


def settings(folder, **values):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def load(folder):
    return load_tokenizer(Checkpoint("tiny", folder, None, "", LLAMA, {}, False, "", "folder"))


@pytest.mark.row("3", "18")
@pytest.mark.parametrize(
    "key", ["vocab", "vocab_file", "init_inputs", "merges", "merges_file", "tokenizer_file"]
)
@pytest.mark.parametrize(
    "kind", ["BertTokenizer", "GPT2Tokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast"]
)
def test_no_file_outside_of_the_folder_is_opened(folder, secret, key, kind):
    """`vocab` made a line of any file on the server a token, which the page shows."""
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text('{"a": 0}')
    values = {"init_inputs": [secret, secret]} if key == "init_inputs" else {key: secret}
    settings(folder, tokenizer_class=kind, **values)
    try:
        found = load(folder)
    except InputError as error:
        assert "root" not in str(error)
    else:
        assert not {"root", "secret"} & set(found.get_vocab())


def test_paths_that_older_versions_left_are_ignored(folder):
    settings(folder, tokenizer_file="/root/.cache/x", special_tokens_map_file="/root/y", vocab_file=None)
    assert load(folder)("a")["input_ids"] == tiny.tokenizer()("a")["input_ids"]


@pytest.mark.row("18")
@pytest.mark.parametrize(
    "files", [["../tokenizer.4.0.json"], ["/x/tokenizer.4.0.json"], "tokenizer.json", [1]]
)
def test_versions_of_the_vocabulary_lie_beside_it(folder, files):
    settings(folder, fast_tokenizer_files=files)
    with pytest.raises(InputError, match="fast_tokenizer_files that are not beside it"):
        load(folder)


@pytest.mark.parametrize("index", ["1000000000000", "16777216", "-1", "1.5", "²", "x"])
def test_ids_of_tokens_are_bounded(folder, index):
    settings(folder, added_tokens_decoder={index: {"content": "<x>", "special": True}})
    with pytest.raises(InputError, match="but ids are whole numbers below 16777216"):
        load(folder)
    settings(folder, added_tokens_decoder={})
    (folder / "added_tokens.json").write_text(json.dumps({"<x>": index}))
    with pytest.raises(InputError, match="added_tokens.json of tiny has a token with the id"):
        load(folder)


class PanicException(BaseException):
    """As the one of libraries written in Rust."""


def test_a_panic_of_native_code_is_one_sentence(folder, monkeypatch):
    import transformers

    def panic(*arguments, **options):
        raise PanicException("index out of bounds\nnote: run with a backtrace")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", panic)
    with pytest.raises(InputError, match="tokenizer of tiny cannot be read: index out of bounds$"):
        load(folder)


def test_an_interruption_is_no_fault_of_the_file(folder, monkeypatch):
    import transformers

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", stop)
    with pytest.raises(KeyboardInterrupt):
        load(folder)


@pytest.mark.row("F18")
@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        '{"eos_token_id": 1.5}',
        '{"top_k": {"a": 1}}',
        '{"num_beams": "x", "do_sample": []}',
        '{"a": [[[]]]}',
    ],
)
def test_generation_settings_of_wrong_types(folder, content):
    (folder / "generation_config.json").write_text(content)

    class Model:
        generation_config = None

    model = Model()
    try:
        loading.set_generation_config(model, folder)
    except InputError as error:
        assert str(error).startswith("generation_config.json") and len(str(error)) < 500
    else:
        assert model.generation_config is not None


def test_overrides_hold_only_names_of_files(folder):
    settings(folder, vocab_file="x", chat_template="y", gguf_file="../z.gguf")
    assert tokenizer_files.overrides(folder) == {"vocab_file": None, "gguf_file": None}
