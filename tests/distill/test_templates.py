"""Templates: what rows become, what is missing said by name, and nothing but text in a template."""

from __future__ import annotations

from pathlib import Path

import pytest

from raygpt.distill.templates import TEMPLATES, first_words, load_template
from raygpt.errors import UserError


def test_a_prompt_is_asked_as_it_stands_and_messages_as_a_conversation() -> None:
    template = load_template("prompt")
    assert template.render({"prompt": "Once {{ upon }} a time "}).prompt == "Once {{ upon }} a time "
    asked = template.render({"messages": [{"role": "user", "content": "Hi"}]})
    assert asked.prompt is None and asked.messages == (("user", "Hi"),)
    # generate.chat makes a user's message of it, generate.system goes before
    chat = load_template("prompt", system="Be brief.", chat=True)
    assert chat.render({"prompt": "Hi"}).messages == (("system", "Be brief."), ("user", "Hi"))
    assert chat.render({"messages": '[{"role": "user", "content": "Ho"}]'}).messages[0] == ("system", "Be brief.")


def test_an_instruction_takes_its_input_from_either_place() -> None:
    template = load_template("instruction")
    plain = template.render({"instruction": "Name a colour."})
    assert plain.messages == (("user", "Name a colour."),)
    assert template.render({"instruction": "Add.", "input": "1 2"}).messages[0][1] == "Add.\n\n1 2"
    seed = {"instruction": "Add.", "instances": [{"input": "3 4", "output": "7"}]}
    assert template.render(seed).messages[0][1] == "Add.\n\n3 4"
    assert template.render({**seed, "instances": [{"input": "", "output": "7"}]}).messages[0][1] == "Add."


def test_a_text_is_gone_on_with_from_the_end_of_a_word() -> None:
    text = "  one two\n\nthree  four five six seven eight"
    assert first_words(text, 3) == "  one two\n\nthree"
    assert first_words(text, 7) == "  one two\n\nthree  four"  # at most half: something is left to write
    template = load_template("continue", text_words=2)
    assert template.render({"text": text}).prompt == "  one two" and template.continues
    assert load_template("continue").version != template.version


@pytest.mark.parametrize("name", ["tutorial", "faq", "table", "math"])
def test_a_text_is_rewritten_through_the_chat_protocol(name: str) -> None:
    asked = load_template(name).render({"text": "Water boils at 100 degrees."})
    assert asked.messages[-1][0] == "user" and asked.messages[-1][1].endswith("Water boils at 100 degrees.")
    assert not load_template(name).continues


def test_each_template_has_a_version_of_its_own_that_its_wording_decides() -> None:
    versions = {template.version for template in TEMPLATES.values()}
    assert len(versions) == len(TEMPLATES) == 8
    assert load_template("faq").version == load_template("faq").version
    assert load_template("faq", system="Be brief.").version != load_template("faq").version


def test_what_a_row_lacks_is_said_by_name() -> None:
    with pytest.raises(ValueError, match=r"has no 'text' \(it has 'body', 'id'\)"):
        load_template("faq").render({"body": "x", "id": 3})
    with pytest.raises(ValueError, match="has an empty 'text'"):
        load_template("faq").render({"text": " \n "})
    with pytest.raises(ValueError, match="has an empty 'prompt'"):
        load_template("prompt").render({"prompt": None})
    for messages in (7, [], [{"role": "user"}], [{"role": "robot", "content": "x"}], [{"role": "user", "content": ""}]):
        with pytest.raises(ValueError, match="message"):
            load_template("prompt").render({"messages": messages})
    with pytest.raises(ValueError, match="last is not the user's"):
        load_template("prompt").render({"messages": [{"role": "assistant", "content": "x"}]})


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "quiz.jinja").write_text("Ask three questions about {{ text }} for {{ audience }}.\n")
    template = load_template(str(tmp_path / "quiz.jinja"))
    assert template.fields == ("audience", "text") and template.version.startswith("quiz-")
    assert template.render({"text": "rain", "audience": "pupils"}).messages == (
        ("user", "Ask three questions about rain for pupils."),
    )
    (tmp_path / "own.yaml").write_text(
        "system: You are a {{ trade }}.\nprompt: '{{ text }}'\nchat: true\noptions: {trade: [baker, smith]}\n"
    )
    own = load_template(str(tmp_path / "own.yaml"))
    assert own.options == {"trade": ("baker", "smith")}
    assert own.render({"text": "Speak.", "trade": "smith"}).messages[0] == ("system", "You are a smith.")


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path: Path) -> None:
    (tmp_path / "bad.jinja").write_text("{{ text.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ValueError, match="does not fit the template bad"):
        load_template(str(tmp_path / "bad.jinja")).render({"text": "x"})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("absent.jinja", None, "is neither a template"),
        ("torn.jinja", "{% if text %}", "is no Jinja template"),
        ("bare.yaml", "system: x\n", "must have the key 'prompt'"),
        ("odd.yaml", "prompt: x\nsamples: 3\n", "must have the key 'prompt'"),
    ],
)
def test_a_bad_template_is_named(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"generate.template=.*{name} .*{said}|generate.template=.*{name} {said}"):
        load_template(str(tmp_path / name))


def test_settings_that_a_template_has_no_use_for_are_named() -> None:
    with pytest.raises(UserError, match="generate.text_words has no meaning for the template instruction"):
        load_template("instruction", text_words=5)
    with pytest.raises(UserError, match="generate.system needs the chat protocol"):
        load_template("continue", system="Be brief.")


def test_a_template_s_words_are_those_that_were_written(tmp_path: Path) -> None:
    """YAML 1.1 would ask a teacher about False, 8 and 45000."""
    (tmp_path / "t.yaml").write_text("prompt: say {answer}\noptions: {answer: [no, yes, 010, 2024-01-01, 12:30:00]}\n")
    assert load_template(str(tmp_path / "t.yaml")).options["answer"] == ("no", "yes", "010", "2024-01-01", "12:30:00")
    (tmp_path / "t.yaml").write_text("prompt: a\nprompt: b\n")
    with pytest.raises(UserError, match="has prompt twice, in line 1 and in line 2"):
        load_template(str(tmp_path / "t.yaml"))
