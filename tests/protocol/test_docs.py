"""docs/protocol.md says what the code does: its tables are drawn from the code.

After a change of messages, states or limits write them anew with: python tests/protocol/test_docs.py
"""

import re
from pathlib import Path
from typing import get_args

import pytest

from protocol import codec, messages
from protocol.codes import ByeCode, CloseCode, DeclineCode, RefusalCode, RejectionCode
from protocol.messages import DEVICE_MESSAGES, MESSAGE_CLASSES, ComponentRef
from protocol.states import TABLE, Role

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
LIMITS = {
    "MAX_MESSAGE": "bytes of one message",
    "CHUNK": "bytes of data in one chunk",
    "MAX_BLOB": "bytes of one transfer",
    "MAX_SETTINGS": "bytes of the settings in a welcome",
    "MAX_COMPONENTS": "components (or digests) that one message names",
    "MAX_TASKS": "tasks of one device",
    "MAX_ROUND": "number of a round or version",
    "MAX_COUNT": "a number of examples or steps",
}

CODES = {"refuse": RefusalCode, "rejected": RejectionCode, "decline": DeclineCode, "bye": ByeCode}


def sender(name):
    if name == "chunk":
        return "both"
    return "device" if name in DEVICE_MESSAGES else "coordinator"


def message_tables():
    lines = []
    for cls in MESSAGE_CLASSES:
        name = cls.model_fields["type"].default
        lines += [f"### {name} ({sender(name)})", "", cls.__doc__.strip(), ""]
        lines += fields(cls)
    lines += [
        "### A component in train, update and finish",
        "",
        ComponentRef.__doc__.strip(),
        "",
        *fields(ComponentRef),
    ]
    return "\n".join(lines).strip()


def fields(cls):
    rows = [f"| `{name}` | {field.description} |" for name, field in cls.model_fields.items() if name != "type"]
    return ["| field | |", "|---|---|", *rows, ""] if rows else []


def state_tables():
    lines = []
    for role in get_args(Role):
        lines += [f"**The {role}**", "", "| state | may send | may receive |", "|---|---|---|"]
        for state, transitions in TABLE[role].items():
            cells = [
                ", ".join(
                    f"{message} → *{new}*" if new != state else message
                    for (direction, message), new in transitions.items()
                    if direction == wanted
                )
                for wanted in ("send", "receive")
            ]
            lines.append(f"| *{state}* | {cells[0] or '—'} | {cells[1] or '—'} |")
        lines.append("")
    return "\n".join(lines).strip()


def limit_table():
    rows = [f"| `{name}` | {getattr(messages, name):,} | {what} |" for name, what in LIMITS.items()]
    rows.append(f"| `_MAX_VALUES` (codec) | {codec._MAX_VALUES:,} | arrays, maps and their entries in one message |")
    return "\n".join(["| limit | most | of what |", "|---|---|---|", *rows])


def code_tables():
    """What each code is for is the docstring of its class; of close codes those under their numbers."""
    lines = ["| message | `code` |", "|---|---|"]
    for message, kind in CODES.items():
        lines.append(f"| {message} | {', '.join(f'`{code.value}`' for code in kind)} |")
    lines += ["", "| close code | name |", "|---|---|"]
    lines += [f"| {code.value} | {code.name.lower().replace('_', ' ')} |" for code in CloseCode]
    return "\n".join(lines)


DRAWN = {"codes": code_tables, "messages": message_tables, "states": state_tables, "limits": limit_table}


def block(name):
    return re.compile(rf"(<!-- {name}: drawn from the code -->\n).*?(<!-- end of {name} -->)", re.DOTALL)


@pytest.mark.parametrize("name", DRAWN)
def test_the_page_says_what_the_code_does(name):
    found = block(name).search(PAGE.read_text(encoding="utf-8"))
    assert found, f"docs/protocol.md lacks its {name}"
    expected = f"{found[1]}{DRAWN[name]()}\n{found[2]}"
    assert found[0] == expected, "run: python tests/protocol/test_docs.py"


def test_every_message_and_state_has_its_place_on_the_page():
    page = PAGE.read_text(encoding="utf-8")
    for cls in MESSAGE_CLASSES:
        assert f"### {cls.model_fields['type'].default} (" in page
    for state in TABLE["device"]:
        assert f"| *{state}* |" in page


def test_every_limit_is_documented():
    constants = {name for name in vars(messages) if name.isupper() and isinstance(getattr(messages, name), int)}
    assert constants == set(LIMITS)


@pytest.mark.parametrize("message", CODES)
def test_every_code_fits_into_its_message(message):
    (cls,) = (cls for cls in MESSAGE_CLASSES if cls.model_fields["type"].default == message)
    given = {"round": 1, "why": "because", "fix": "mend it"}
    for code in CODES[message]:
        facts = {key: value for key, value in given.items() if key in cls.model_fields}
        assert cls(code=code.value, **facts).code == code


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    for name, draw in DRAWN.items():
        text = block(name).sub(lambda found, draw=draw: f"{found[1]}{draw()}\n{found[2]}", text)
    PAGE.write_text(text, encoding="utf-8")
