"""What a request may name: a folder inside the roots, files inside that folder, a message within the limit."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermetic.protocol.errors import ClientError, EmptyMessage, TooLarge, UnknownWorkspace, WorkspaceNotAllowed
from hermetic.supervisor.workspaces import check_attachments, check_message, resolve_workspace

SESSION = "0123456789ab"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "project").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "root"


def resolve(asked: str | None, root: Path, *more: Path) -> Path:
    return resolve_workspace(asked, session_id=SESSION, roots=[str(root), *more], data_dir=root.parent / "data")


def test_a_session_that_asks_for_none_gets_its_own(root: Path) -> None:
    own = resolve(None, root)
    assert own == root.parent / "data" / "workspaces" / SESSION
    assert own.is_dir() and own.stat().st_mode & 0o777 == 0o700
    (own / "kept").touch()
    assert resolve(None, root) == resolve(str(own), root) == own
    assert (own / "kept").exists()


def test_a_session_may_ask_for_its_own_by_name_and_for_no_other_ones(root: Path) -> None:
    own = resolve(None, root)
    other = own.parent / "ba9876543210"
    other.mkdir()
    assert resolve_workspace(str(own), session_id=SESSION, roots=[], data_dir=root.parent / "data") == own
    for wide in ([], [root.parent], ["/"]):
        for asked in (other, own.parent, own.parent.parent, own / "inside"):
            with pytest.raises(WorkspaceNotAllowed):
                resolve_workspace(str(asked), session_id=SESSION, roots=wide, data_dir=root.parent / "data")


def test_a_folder_that_holds_the_servers_data_is_refused_however_wide_the_root(root: Path) -> None:
    with pytest.raises(WorkspaceNotAllowed):
        resolve(str(root.parent), root, root.parent)
    with pytest.raises(WorkspaceNotAllowed):
        resolve("/", root, Path("/"))


def test_a_root_that_lies_in_the_data_says_so_itself(root: Path) -> None:
    shared = root.parent / "data" / "shared"
    (shared / "a").mkdir(parents=True)
    assert resolve(str(shared / "a"), shared) == shared / "a"


def test_a_folder_inside_a_root_is_allowed_and_resolved(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = root / "project"
    (root / "link").symlink_to(project)
    assert resolve(str(project), root) == project
    assert resolve(f"{root}/./project/../project/", root) == project
    assert resolve(str(root / "link"), root) == project
    assert resolve(str(root), root) == root
    monkeypatch.setenv("HOME", str(root))
    assert resolve("~/project", root) == project


def test_a_root_may_itself_be_a_link(root: Path) -> None:
    alias = root.parent / "alias"
    alias.symlink_to(root)
    assert resolve(str(alias / "project"), alias) == root / "project"


@pytest.mark.parametrize("asked", ["../elsewhere", "escape", "escape/deeper", "../root-sibling", "dangling"])
def test_what_leaves_the_root_is_refused_whether_it_exists_or_not(root: Path, asked: str) -> None:
    (root.parent / "root-sibling").mkdir()
    (root / "escape").symlink_to(root.parent / "elsewhere")
    (root / "dangling").symlink_to("/nowhere/at/all")
    with pytest.raises(WorkspaceNotAllowed) as caught:
        resolve(f"{root}/{asked}", root)
    assert caught.value.status == 403 and caught.value.code == "workspace_not_allowed"
    assert "elsewhere" not in str(caught.value).replace(asked, "")


def test_without_roots_nothing_can_be_chosen(root: Path) -> None:
    with pytest.raises(WorkspaceNotAllowed):
        resolve_workspace(str(root), session_id=SESSION, roots=[], data_dir=root.parent / "data")


def test_what_is_not_there_or_no_folder_is_not_found(root: Path) -> None:
    (root / "file").touch()
    (root / "a").symlink_to(root / "b")
    (root / "b").symlink_to(root / "a")
    for asked in (
        f"{root}/missing", f"{root}/file", f"{root}/file/x", f"{root}/a", "relative", "project", "", "~nobody/x",
        f"{root}/nul\0", f"{root}/{'x' * 256}", f"{root}/" + "x/" * 2100, f"{root}/\ud800",
    ):  # fmt: skip
        with pytest.raises((UnknownWorkspace, WorkspaceNotAllowed)) as caught:
            resolve(asked, root)
        assert isinstance(caught.value, UnknownWorkspace), asked
        assert (caught.value.status, caught.value.code) == (400, "workspace_not_found")
        assert len(str(caught.value)) < 500


def test_a_session_whose_own_folder_became_something_else_is_told(root: Path) -> None:
    own = resolve(None, root)
    own.rmdir()
    own.symlink_to(root.parent / "elsewhere")
    with pytest.raises(WorkspaceNotAllowed):
        resolve(None, root)
    own.unlink()
    own.touch()
    with pytest.raises(UnknownWorkspace):
        resolve(None, root)


def test_an_id_that_is_a_path_never_makes_a_folder(tmp_path: Path) -> None:
    for session_id in ("..", "../x", "a/b", ""):
        with pytest.raises(UnknownWorkspace):
            resolve_workspace(None, session_id=session_id, roots=[], data_dir=tmp_path / "data")
    assert not (tmp_path / "data").exists()


# --- attachments, message -----------------------------------------------------------------------------------------


def test_attachments_are_names_inside_the_workspace() -> None:
    names = ["a.txt", "images/plan 1.png", "übung, [1].md", "..a", "Screenshot\u202fPM.png"]
    assert check_attachments(names) == names
    assert check_attachments([]) == []
    assert len(check_attachments(["x"] * 20)) == 20


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "..", "../x", "a/../../x", "a/..", ".", "a//b", "a/", "a\0", "a\nb", "a\u2028b", "\ud800",
     "x" * 256, "/".join(["x" * 200] * 21)],
)  # fmt: skip
def test_a_name_that_could_lead_out_or_break_the_line_is_refused(name: str) -> None:
    with pytest.raises(ClientError) as caught:
        check_attachments(["ok", name])
    assert caught.value.status == 400


def test_the_twenty_first_attachment_is_too_many() -> None:
    with pytest.raises(TooLarge, match="21 attachments; 20 at most"):
        check_attachments(["x"] * 21)


def test_a_message_is_stripped_and_counted_in_bytes() -> None:
    assert check_message("  hi\n", 2) == "hi"
    assert check_message("ü", 2) == "ü"
    with pytest.raises(TooLarge, match=r"3 bytes; limits\.message_bytes_max is 2"):
        check_message("aü", 2)
    for empty in ("", " \n\t", "\u3000"):
        with pytest.raises(EmptyMessage):
            check_message(empty, 10)
    with pytest.raises(ClientError, match="surrogate"):
        check_message("a\udc00", 10)


@settings(deadline=None)
@given(text=st.text(), bytes_max=st.integers(1, 50))
def test_a_message_that_passes_is_not_empty_and_within_the_limit(text: str, bytes_max: int) -> None:
    try:
        message = check_message(text, bytes_max)
    except ClientError:
        return
    assert message == message.strip() and 1 <= len(message.encode()) <= bytes_max


@pytest.mark.parametrize("system", ["/", "/etc", "/usr/lib", "/proc/self", "/var/lib/dpkg", "/root/.ssh"])
def test_a_root_as_wide_as_the_host_still_leaves_the_system_alone(tmp_path: Path, system: str) -> None:
    (tmp_path / "project").mkdir()
    data = tmp_path / "data"
    wide = {"session_id": "s", "roots": ["/"], "data_dir": data}
    assert resolve_workspace(str(tmp_path / "project"), **wide) == tmp_path / "project"
    with pytest.raises(WorkspaceNotAllowed):
        resolve_workspace(system, **wide)
    with pytest.raises(WorkspaceNotAllowed):
        resolve_workspace(str(data / "workspaces" / "another"), **wide)


def test_a_root_inside_of_a_system_folder_says_what_is_meant() -> None:
    arguments = {"session_id": "s", "data_dir": "/nowhere"}
    assert resolve_workspace("/usr/share", roots=["/usr/share"], **arguments) == Path("/usr/share")
    with pytest.raises(WorkspaceNotAllowed):
        resolve_workspace("/usr/lib", roots=["/usr/share", "/"], **arguments)
