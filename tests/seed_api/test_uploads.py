"""Files into a session's workspace: size and name rules, and no way out of the workspace."""

from __future__ import annotations

import io
import os
import re

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from hermetic.protocol.errors import ClientError, Conflict
from hermetic.web.uploads import place, safe_name


async def send(server, *, status: int = 200, session: str | None, file=None, **kwargs) -> dict:
    data = {} if session is None else {"session_id": session}
    files = {} if file is None else {"file": file}
    answer = await post(server, data=data, files=files, **kwargs)
    assert answer.status_code == status, answer.text
    return answer.json()


async def post(server, **kwargs) -> httpx.Response:
    """In a thread: an asynchronous httpx leaves its generators behind when the answer comes before all is sent."""
    return await trio.to_thread.run_sync(lambda: httpx.post(server.url + "/api/upload", timeout=60, **kwargs))


async def workspace_of(server, session: str):
    return trio.Path((await server.call("GET", f"/v1/sessions/{session}"))["workspace"])


async def test_a_file_lands_in_the_workspace_and_the_answer_says_where(server):
    session = await server.new()
    content = os.urandom(200_000)
    answer = await send(server, session=session, file=("my plan (2).txt", content))
    path = await workspace_of(server, session) / "my_plan__2_.txt"
    assert answer == {"filename": "my_plan__2_.txt", "path": str(path), "size": len(content)}
    assert await path.read_bytes() == content
    left = [entry.name for entry in await path.parent.iterdir()]
    assert left == ["my_plan__2_.txt"], "no draft is left"
    stream = await server.begin(session, ["say", "seen"], attachments=[answer["filename"]])
    message = (await server.read(stream))[-2][2]["session"]["messages"][0]
    assert message["attachments"] == ["my_plan__2_.txt"]


async def test_a_file_of_the_same_name_is_replaced(server):
    session = await server.new()
    for content in b"old and longer", b"new":
        answer = await send(server, session=session, file=("a.txt", content))
    assert await trio.Path(answer["path"]).read_bytes() == b"new"


async def test_the_session_may_be_named_after_the_file(server):
    session = await server.new()
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="late.txt"\r\n\r\nhello\r\n'
        b'--x\r\nContent-Disposition: form-data; name="session_id"\r\n\r\n' + session.encode() + b"\r\n--x--\r\n"
    )
    answer = await post(server, content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.json()["size"] == 5


async def test_a_file_over_the_limit_is_413_and_leaves_nothing(server):
    session = await server.new()
    assert (await send(server, session=session, file=("big", b"x" * 300_001), status=413))["error"]
    await send(server, session=session, file=("fits", b"x" * 300_000))
    assert [entry.name for entry in await (await workspace_of(server, session)).iterdir()] == ["fits"]


async def test_a_body_without_a_length_is_counted_as_it_comes(server):
    session = await server.new()

    def body():
        yield f'--x\r\nContent-Disposition: form-data; name="session_id"\r\n\r\n{session}\r\n'.encode()
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="drip"\r\n\r\n'
        for _ in range(5):
            yield b"y" * 61_000
        yield b"\r\n--x--\r\n"

    answer = await post(server, content=body(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413


@pytest.mark.parametrize("name", [".", "..", "...", "/", "a/.."])
async def test_a_name_of_dots_alone_is_refused(server, name):
    assert (await send(server, session=await server.new(), file=(name, b"x"), status=400))["error"]


@pytest.mark.parametrize(
    ("session", "file", "status"),
    [("0123456789ab", ("a", b"x"), 404), (None, ("a", b"x"), 400), ("SESSION", None, 415)],
)
async def test_an_upload_that_does_not_say_what_or_where_to_is_refused(server, session, file, status):
    session = await server.new() if session == "SESSION" else session
    assert (await send(server, session=session, file=file, status=status))["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x",
        b"--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\ncut in the mid',
        b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nno file but a field\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n1\r\n' * 2 + b"--x--\r\n",
        b"--x\r\n" + b"A" * 70_000 + b"\r\n\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n1\r\n' * 50 + b"--x--\r\n",
    ],
)
async def test_a_broken_form_is_an_error_of_its_sender(server, body):
    answer = await post(server, content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code in (400, 413), answer.text
    assert answer.json()["error"]


async def test_a_link_in_the_workspace_leads_nowhere(server, tmp_path):
    session = await server.new()
    workspace = await workspace_of(server, session)
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    os.symlink(outside, workspace / "link.txt")
    os.symlink(tmp_path, workspace / "folder")
    for name in "link.txt", "folder":
        await send(server, session=session, file=(name, b"mine"))
        assert not await (workspace / name).is_symlink()
        assert await (workspace / name).read_bytes() == b"mine"
    assert outside.read_text() == "untouched"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["outside"]


async def test_a_workspace_that_was_replaced_by_a_link_is_refused(server, tmp_path):
    session = await server.new()
    workspace = await workspace_of(server, session)
    await workspace.rmdir()
    os.symlink(tmp_path, workspace)
    answer = await send(server, session=session, file=("a", b"x"), status=403)
    assert answer["error"]
    assert list(tmp_path.iterdir()) == []


def test_place_opens_no_workspace_behind_a_link_and_replaces_no_folder(tmp_path):
    real = tmp_path / "real"
    (real / "name").mkdir(parents=True)
    os.symlink(real, tmp_path / "link")
    with pytest.raises(ClientError):
        place(io.BytesIO(b"x"), tmp_path / "link", "a")
    with pytest.raises(Conflict):
        place(io.BytesIO(b"x"), real, "name")
    assert [entry.name for entry in real.iterdir()] == ["name"]


@given(st.text(max_size=300))
def test_a_safe_name_is_one_plain_part_of_a_path(name):
    try:
        made = safe_name(name)
    except ClientError:
        return
    assert re.fullmatch(r"[\w.\-]{1,200}", made)
    assert made.strip(".")
    assert len(made.encode()) <= 255
    assert safe_name(made) == made


def test_names_are_cut_and_cleaned_as_the_web_ui_does_it():
    assert safe_name("a b/c:d*.txt") == "c_d_.txt"
    assert safe_name("x" * 300) == "x" * 200
    assert safe_name(r"C:\\Users\\me\\report.pdf") == "report.pdf"
    assert safe_name("Übergröße.md") == "Übergröße.md"
