"""Steps of a tokenizer that make gigabytes of a prompt are refused before the library applies them; those of
known tokenizers are not."""

import json
import re
from base64 import b64encode

import pytest
import tiny
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from qcore.base.errors import InputError
from qcore.library import tokenizer_growth
from qcore.library.loading import load_tokenizer
from qcore.library.tokenizer_growth import check_definition, check_tokenizer
from qcore.models.checkpoint import Checkpoint

LONGEST_FORM = "\ufdfa"  # 18 characters in NFKD
TABLE = (4).to_bytes(4, "little") + bytes(4)


def table(*texts: str) -> dict:
    encoded = b64encode(TABLE + "".join(text + "\0" for text in texts).encode()).decode()
    return {"type": "Precompiled", "precompiled_charsmap": encoded}


def replace(pattern: str | dict, content: str, **more) -> dict:
    return {
        "pattern": {"String": pattern} if isinstance(pattern, str) else pattern,
        "content": content,
    } | more


def sequence(key: str, *steps: dict) -> dict:
    return {"type": "Sequence", key: list(steps)}


def template(*pieces: dict, ids: int = 1) -> dict:
    special = {"<s>": {"id": "<s>", "ids": [0] * ids, "tokens": ["<s>"] * ids}}
    return {"type": "TemplateProcessing", "single": list(pieces), "special_tokens": special}


A = {"Sequence": {"id": "A", "type_id": 0}}
FOUR = [replace("a", "aaaa")] * 4
EXPLODING = {
    "a long content": {"normalizer": replace(".", "A" * 500_000)},
    "without a type, inside others": {"normalizer": sequence("normalizers", sequence("normalizers", *FOUR))},
    "of no characters": {"normalizer": sequence("normalizers", *[replace("", "a")] * 8)},
    "an empty match": {"normalizer": sequence("normalizers", *[replace({"Regex": "x*"}, "a")] * 8)},
    "a look ahead": {"normalizer": sequence("normalizers", *[replace({"Regex": "(?=a)"}, "a")] * 8)},
    "a boundary": {"normalizer": sequence("normalizers", *[replace({"Regex": r"\b"}, "a")] * 8)},
    "a form that grows": {"normalizer": sequence("normalizers", *[replace("a", LONGEST_FORM)] * 2)},
    "a prefix": {"normalizer": {"type": "Prepend", "prepend": "a" * 100}},
    "a table": {"normalizer": table("a", "b" * 101)},
    "tables": {"normalizer": sequence("normalizers", *[table("b" * 18)] * 2)},
    "bytes of bytes": {"normalizer": sequence("normalizers", *[{"type": "ByteLevel"}] * 4)},
    "prefixes of pieces": {
        "pre_tokenizer": sequence("pretokenizers", *[{"type": "Metaspace", "replacement": "x"}] * 7)
    },
    "both": {
        "normalizer": {"type": "Prepend", "prepend": "a" * 50},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "x"},
    },
    "the text again": {"post_processor": template(*[A] * 101)},
    "processors": {"post_processor": sequence("processors", *[template(A, A)] * 7)},
    "a decoder": {"decoder": replace(".", "A" * 99_000)},
    "decoders": {"decoder": sequence("decoders", *FOUR)},
    "suffixes": {"decoder": sequence("decoders", *[{"type": "BPEDecoder", "suffix": ""}] * 7)},
}
LARGE = {
    "tokens around": template({"SpecialToken": {"id": "<s>", "type_id": 0}}, A, ids=65),
    "pieces": template(*[{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 1000),
}


def parts_of(**parts) -> dict:
    return {key: json.loads(part.__getstate__()) for key, part in parts.items()}


def metaspace() -> pre_tokenizers.Metaspace:
    return pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")


KNOWN = {
    "gpt2": parts_of(pre_tokenizer=pre_tokenizers.ByteLevel(), decoder=decoders.ByteLevel()),
    "llama": parts_of(
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        post_processor=processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)]),
        decoder=decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(content=" ", left=1),
            ]
        ),
    ),
    "xlnet": {
        "normalizer": sequence(
            "normalizers",
            replace("``", '"'),
            replace("''", '"'),
            *({"type": form} for form in ("NFKD", "StripAccents", "Lowercase")),
            table("a" * 18),
            replace({"Regex": " {2,}"}, " "),
        )
    }
    | parts_of(pre_tokenizer=metaspace(), decoder=decoders.Metaspace()),
    "bert": parts_of(
        normalizer=normalizers.BertNormalizer(),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
    ),
    "many classes": {"normalizer": sequence("normalizers", *[replace({"Regex": r"[أإ\]]+"}, "ا")] * 20)},
}


@pytest.fixture
def folder(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(folder):
    return load_tokenizer(
        Checkpoint("tiny", folder, None, "", {"model_type": "llama"}, {}, False, "", "folder")
    )


@pytest.mark.row("46")
@pytest.mark.parametrize("parts", EXPLODING.values(), ids=EXPLODING)
def test_steps_that_fill_the_memory_are_refused(parts):
    with pytest.raises(InputError, match="tokenizer of tiny may make .* of each that it .* Choose another"):
        check_definition(parts, "tiny")


@pytest.mark.row("46")
@pytest.mark.parametrize("part", LARGE.values(), ids=LARGE)
def test_many_tokens_around_a_text_are_refused(part):
    with pytest.raises(InputError, match="post-processor in the tokenizer of tiny has too many"):
        check_definition({"post_processor": part}, "tiny")


@pytest.mark.parametrize("parts", KNOWN.values(), ids=KNOWN)
def test_steps_of_known_tokenizers_are_read(parts):
    check_definition(parts, "tiny")


@pytest.mark.parametrize(
    "value", [1, "x", [1, None], {"type": 3}, {"pattern": 1, "content": 2}, table("a")["type"]]
)
def test_parts_of_wrong_types_are_the_librarys_to_refuse(value):
    check_definition(dict.fromkeys(("normalizer", "decoder", "model", "added_tokens"), value), "tiny")
    check_definition({"normalizer": {"precompiled_charsmap": value}}, "tiny")


@pytest.mark.parametrize("pattern", [" {2,}", r"\s+", "[a-z]+", r"\p{Han}", "ab", r"[^\]x]", r"\.", "[]x]"])
def test_a_pattern_that_is_never_empty_counts_its_content_once(pattern):
    step = normalizers.Replace(Regex(pattern), "")
    assert step.normalize_str("漢 .ab]  x") != "漢 .ab]  x"
    check_definition(
        {"normalizer": sequence("normalizers", *[replace({"Regex": pattern}, "a")] * 20)}, "tiny"
    )


@pytest.mark.parametrize(
    "pattern",
    [
        "a?",
        "a*",
        "a|",
        "",
        "^",
        "(a)?",
        "a{0,3}",
        "a{,3}",
        "a{1,0}",
        "a{2}{0}",
        "(?=a)",
        r"\b",
        r"\G",
        "a+?|",
    ],
)
def test_a_pattern_that_may_be_empty_does_not(pattern):
    assert not tokenizer_growth._CONSUMING.fullmatch(pattern)


@pytest.mark.row("46")
@pytest.mark.parametrize("place", ["vocab", "added_tokens"])
def test_a_token_of_megabytes_is_refused(folder, place):
    path = folder / "tokenizer.json"
    definition = json.loads(path.read_text())
    if place == "vocab":
        definition["model"]["vocab"]["a" * 513] = 999
    else:
        definition["added_tokens"].append({"id": 999, "content": "a" * 513, "special": False})
    path.write_text(json.dumps(definition))
    with pytest.raises(InputError, match="tokenizer of tiny has a token of 513 characters"):
        load(folder)


@pytest.mark.row("46")
def test_it_is_refused_before_the_library_applies_it(folder, monkeypatch):
    """A file that is refused is not read."""
    import transformers

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("read"))
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": replace(".", "A" * 500_000)}))
    with pytest.raises(InputError, match=re.escape("may make 1,000,000 characters of each that it reads")):
        load(folder)


@pytest.mark.row("46")
def test_a_key_that_hides_another_is_refused(folder):
    """Which of the two counts would be for the library to say."""
    path = folder / "tokenizer.json"
    hidden = json.dumps(replace(".", "A" * 500_000))
    text = path.read_text().lstrip()
    path.write_text(f'{{"normalizer": {hidden}, {text[1:]}')
    with pytest.raises(InputError, match="tokenizer.json does not hold valid JSON"):
        load(folder)


@pytest.mark.row("46")
def test_a_tokenizer_from_any_file_is_checked():
    inner = Tokenizer.from_str(tiny.tokenizer().backend_tokenizer.to_str())
    check_tokenizer(PreTrainedTokenizerFast(tokenizer_object=inner), "tiny")
    inner.normalizer = normalizers.Replace(".", "A" * 500)
    with pytest.raises(InputError, match="may make 1,000 characters"):
        check_tokenizer(PreTrainedTokenizerFast(tokenizer_object=inner), "tiny")
