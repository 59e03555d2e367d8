"""Generation token by token against transformers' own `generate`; limits; and the position where two answers
diverge."""

import copy

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcore.base.errors import InputError, RunError
from qcore.base.prompts import Message, Prompt
from qcore.evaluation import chat
from qcore.evaluation.generation import (
    MAX_CHARACTERS,
    compare_generations,
    first_divergence,
    generate_text,
    prepare,
)
from qcore.evaluation.textstream import decode

TOKENIZER = tiny.tokenizer()
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if "
    "add_generation_prompt %}<assistant>{% endif %}"
)


def says(model: torch.nn.Module, *tokens: int) -> torch.nn.Module:
    """Make a model generate `tokens` in turn, whatever it reads."""
    forward, steps = model.forward, iter(tokens)

    def scripted(input_ids, **options):
        output = forward(input_ids=input_ids, **options)
        output.logits = torch.nn.functional.one_hot(
            torch.full_like(output.logits[..., 0], next(steps), dtype=torch.long), tiny.VOCABULARY
        ).float()
        return output

    model.forward = scripted
    return model


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_greedy_equals_generate(kind):
    model, ids = tiny.sharp(kind), TOKENIZER("Hello there", return_tensors="pt").input_ids
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0
    )[0, ids.shape[1] :]
    made = generate_text(model, TOKENIZER, "Hello there", 20)
    assert [*made.tokens, *([257] if made.reason == "end" else [])] == expected.tolist()
    assert made.text == decode(TOKENIZER, made.tokens) and made.prompt_tokens == 11 and made.notes == ()


def test_pieces_are_streamed_and_join_to_the_text():
    pieces = []
    made = generate_text(
        tiny.sharp("llama"), TOKENIZER, "Hello", 30, temperature=2.0, seed=5, on_text=pieces.append
    )
    assert "".join(pieces) == made.text and all(pieces)
    again = generate_text(tiny.sharp("llama"), TOKENIZER, "Hello", 30, temperature=2.0, seed=5)
    other = generate_text(tiny.sharp("llama"), TOKENIZER, "Hello", 30, temperature=2.0, seed=6)
    assert again.tokens == made.tokens != other.tokens


def test_stopping():
    model = tiny.model("llama")
    assert generate_text(model, TOKENIZER, "Hi", 5, should_stop=lambda: True).reason == "stopped"
    answers = iter([False, False, False, True])
    made = generate_text(model, TOKENIZER, "Hi", 50, temperature=1.0, should_stop=lambda: next(answers))
    assert (made.reason, len(made.tokens)) == ("stopped", 3)
    made = generate_text(model, TOKENIZER, "Hi", 4, temperature=1.0, seed=1)
    assert (made.reason, len(made.tokens)) == ("length", 4) and made.decode_tok_s > 0


def test_the_end_token_ends_the_text_and_is_not_part_of_it():
    made = generate_text(says(tiny.model("llama"), 65, 66, 257, 67), TOKENIZER, "Hi", 9)
    assert (made.tokens, made.reason) == ([65, 66], "end")
    model = tiny.model("llama")
    model.generation_config.eos_token_id = [65, 7]
    assert generate_text(says(model, 66, 7), TOKENIZER, "Hi", 9).tokens == [66]


@pytest.mark.row("15")
def test_a_prompt_that_is_too_long_loses_its_beginning_and_says_so():
    made = generate_text(tiny.model("llama"), TOKENIZER, "x" * 600 + "end", 12)
    assert made.prompt_tokens == 500
    assert made.notes == ("The prompt has 603 tokens; only its last 500 were read, so that 12 new ones fit.",)
    assert (
        prepare(tiny.model("llama"), TOKENIZER, "x" * 600 + "end", 12).tokens[-3:]
        == TOKENIZER("end")["input_ids"]
    )
    assert prepare(tiny.model("llama"), TOKENIZER, "x" * 500, 12).notes == ()


@pytest.mark.row("16")
@pytest.mark.parametrize(
    "prompt", ["\u202eabc", "a\u200bb", "\0", "<b>$x$</b>", "\x1b[31m", "\U0001f600"], ids=ascii
)
def test_odd_characters_are_read_as_they_are(prompt):
    ready = prepare(tiny.model("llama"), TOKENIZER, prompt, 5)
    assert TOKENIZER.decode(ready.tokens) == prompt and ready.notes == ()


@pytest.mark.row("16")
def test_half_characters_are_replaced_and_it_is_said():
    ready = prepare(tiny.model("llama"), TOKENIZER, "a\ud800b", 5)
    assert TOKENIZER.decode(ready.tokens) == "a\ufffdb" and "lone surrogates" in ready.notes[0]


@pytest.mark.row("13")
def test_an_empty_prompt_begins_with_bos_or_is_refused():
    assert prepare(tiny.model("llama"), TOKENIZER, "", 5).tokens == [256]
    bare = tiny.tokenizer()
    bare.bos_token = None
    with pytest.raises(InputError, match="prompt is empty"):
        prepare(tiny.model("llama"), bare, "", 5)


def test_chat_uses_the_template_or_says_there_is_none():
    with pytest.raises(InputError, match="no chat template"):
        prepare(tiny.model("llama"), TOKENIZER, "Hi", 5, chat=True)
    chatty = tiny.tokenizer()
    chatty.chat_template = TEMPLATE
    assert (
        TOKENIZER.decode(prepare(tiny.model("llama"), chatty, "Hi", 5, chat=True).tokens)
        == "<user>Hi<assistant>"
    )


@pytest.mark.row("15")
@pytest.mark.parametrize(
    ("prompt", "tokens", "options", "words"),
    [
        ("Hi", -1, {}, "new tokens is -1"),
        ("Hi", 0, {}, "new tokens is 0"),
        ("Hi", 10**9, {}, "between 1 and 2048"),
        ("Hi", 2.0, {}, "new tokens is 2.0"),
        ("Hi", 512, {}, "at most 511"),
        ("x" * (MAX_CHARACTERS + 1), 5, {}, "1,000,001 characters"),
        ("Hi", 5, {"temperature": float("nan")}, "temperature is nan"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_bad_requests(prompt, tokens, options, words):
    with pytest.raises(InputError, match=words):
        generate_text(tiny.model("llama"), TOKENIZER, prompt, tokens, **options)


@pytest.mark.row("13")
def test_a_tokenizer_of_another_model_is_refused():
    model = tiny.model("llama")
    model.config = copy.copy(model.config)
    model.config.vocab_size = 50
    with pytest.raises(InputError, match="they do not match"):
        prepare(model, TOKENIZER, "zebra", 5)


@pytest.mark.row("40")
def test_nan_logits_write_nothing():
    model = tiny.model("llama")
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(RunError, match="NaN"):
        generate_text(model, TOKENIZER, "Hi", 5)


PROMPTS = [
    Prompt(str(i), "fact", text)
    for i, text in enumerate(["The capital", "2+2=", "a", "def f(x):\n    return", "Once upon a time"])
]


@pytest.mark.parametrize("kind", tiny.CONFIGS)
@pytest.mark.row("13")
def test_prompts_decoded_together_are_as_if_alone(kind):
    model, calls = tiny.sharp(kind), []
    together = compare_generations(
        model, TOKENIZER, PROMPTS, 12, progress=lambda *call: calls.append(call), batch=3
    )
    alone = [generate_text(model, TOKENIZER, prompt.text, 12) for prompt in PROMPTS]
    assert [made.tokens for made in together] == [made.tokens for made in alone]
    assert [made.text for made in together] == [made.text for made in alone]
    assert [(made.id, made.kind, made.prompt) for made in together] == [
        (prompt.id, prompt.kind, prompt.text) for prompt in PROMPTS
    ]
    assert calls[-1] == (24, 24, "prompts 4 to 5 of 5, token 12") and [
        done for done, _, _ in calls
    ] == sorted(done for done, _, _ in calls)
    assert all(made.first_divergence is None for made in together)


def test_divergence_from_the_baseline():
    base = {made.id: made.tokens for made in compare_generations(tiny.sharp("llama"), TOKENIZER, PROMPTS, 8)}
    again = compare_generations(tiny.sharp("llama"), TOKENIZER, PROMPTS, 8, base)
    assert all(made.first_divergence is None for made in again)
    base["0"] = [*base["0"][:3], 999, *base["0"][4:]]
    del base["1"]
    changed = compare_generations(tiny.sharp("llama"), TOKENIZER, PROMPTS, 8, base)
    assert [made.first_divergence for made in changed] == [3, None, None, None, None]


def test_a_dialogue_goes_through_the_chat_template():
    chatty = tiny.tokenizer()
    chatty.chat_template = TEMPLATE
    dialogue = (Message("system", "Be short."), Message("user", "Hi"))
    tokens = prepare(tiny.model("llama"), chatty, dialogue, 5).tokens
    wanted = [{"role": each.role, "content": each.content} for each in dialogue]
    text = chatty.apply_chat_template(wanted, tokenize=False, add_generation_prompt=True)
    assert TOKENIZER.decode(tokens) == text and "Be short." in text
    asked = Prompt("1", "own", "shown", dialogue)
    assert compare_generations(tiny.sharp("llama"), chatty, [asked], 4, chat=False)[0].prompt == "shown"
    with pytest.raises(InputError, match="no chat template"):
        compare_generations(tiny.sharp("llama"), TOKENIZER, [asked], 4)


TEMPLATES = {
    "syntax": ("{% for m in messages %}", "line 1 has an error of syntax"),
    "filter": ("{{ messages | shout }}", "No filter named 'shout'"),
    "raises": ("{{ raise_exception('Only tools!') }}", "refuses the messages .Only tools!."),
    "tools": ("{% if not tools %}{{ tools[0].name }}{% endif %}", "something that a plain message does not"),
    "forbidden": ("{{ messages.__class__.__mro__ }}", "forbidden"),
    "changes": ("{% set _ = messages.append(1) %}x", "forbidden"),
    "range": ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
    "division": ("{{ 1 / 0 }}", "it fails .division by zero."),
    "recursion": ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "it fails .maximum recursion"),
    "only names": ({"rag": "x", "tool_use": "y"}, r"only under names \(rag, tool_use\), and none"),
}


@pytest.mark.row("F17")
@pytest.mark.parametrize(("template", "message"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_chat_template_that_cannot_be_used(template, message):
    chatty = tiny.tokenizer()
    chatty.chat_template = template
    with pytest.raises(InputError, match=message) as error:
        prepare(tiny.model("llama"), chatty, "Hi", 5, chat=True)
    assert "end the prompt as plain text" in str(error.value)
    assert prepare(tiny.model("llama"), chatty, "Hi", 5).tokens


@pytest.mark.row("F17")
def test_loops_within_loops_of_a_chat_template_end(monkeypatch):
    monkeypatch.setattr(chat, "PATIENCE", 0.2)
    chatty = tiny.tokenizer()
    inner = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    chatty.chat_template = inner
    with pytest.raises(InputError, match="did not end within 0.2 seconds"):
        prepare(tiny.model("llama"), chatty, "Hi", 5, chat=True)


@pytest.mark.row("F17")
@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 10 ** (10 ** 9) }}", "did not end within 0.5 seconds|more than 512 MB"),
        (
            "{% set n = namespace(x=9 ** 9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
            "did not end|MB",
        ),
        ("{{ 'a' * 10 ** 10 }}", "it takes more than 512 MB of memory"),
        (
            "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "MB|end",
        ),
        ("{{ 'x'.center(10 ** 10) }}", "it takes more than 512 MB of memory"),
    ],
    ids=["power", "product", "repeated", "doubled", "padded"],
)
def test_no_operation_of_a_chat_template_takes_the_process(monkeypatch, template, message):
    """The first one hung for hours, and the others took all memory."""
    monkeypatch.setattr(chat, "PATIENCE", 0.5)
    chatty = tiny.tokenizer()
    chatty.chat_template = template
    with pytest.raises(InputError, match=message):
        chat.render(chatty, [Message("user", "Hi")])
    if "10 ** (" in template:
        with pytest.raises(InputError, match=message):
            chat.check_template(template)


@pytest.mark.row("F17")
def test_the_default_of_several_chat_templates_is_used():
    chatty = tiny.tokenizer()
    chatty.chat_template = {"default": TEMPLATE, "tool_use": "{{ broken"}
    assert prepare(tiny.model("llama"), chatty, "Hi", 5, chat=True).tokens


def test_prompts_with_a_chat_template_are_asked_as_a_chat():
    chatty = tiny.tokenizer()
    chatty.chat_template = TEMPLATE
    model = tiny.sharp("llama")
    asked = compare_generations(model, chatty, PROMPTS[:1], 6)[0]
    assert asked.tokens == generate_text(model, chatty, PROMPTS[0].text, 6, chat=True).tokens
    plain = compare_generations(model, chatty, PROMPTS[:1], 6, chat=False)[0]
    assert plain.tokens == generate_text(model, chatty, PROMPTS[0].text, 6).tokens


@given(base=st.lists(st.integers(0, 2), max_size=6), other=st.lists(st.integers(0, 2), max_size=6))
def test_first_divergence(base, other):
    index = first_divergence(base, other)
    if index is None:
        assert base == other
    else:
        assert base[:index] == other[:index] and base[index : index + 1] != other[index : index + 1]


def test_no_prompts_is_no_generations():
    assert compare_generations(tiny.model("llama"), TOKENIZER, [], 5) == []
