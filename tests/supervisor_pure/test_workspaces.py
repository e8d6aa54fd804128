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
