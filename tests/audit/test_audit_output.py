"""The folder of an audit: an earlier one stays until the new one is whole, and one audit at a time is written."""

import pytest
from helpers.parts import full_after
from test_audit_text import make_result

from trl_pafo.audit.output import write_audit
from trl_pafo.errors import RunFolderError
from trl_pafo.storage.files import alone


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_full_disk_leaves_the_audit_before(tmp_path):
    write_audit(make_result(), tmp_path / "audit")
    before = files(tmp_path)
    with full_after(100), pytest.raises(RunFolderError, match=r"cannot be written: File too large"):
        write_audit(make_result(accuracy=False), tmp_path / "audit")
    assert {name: content for name, content in files(tmp_path).items() if name.startswith("audit/")} == before
    write_audit(make_result(accuracy=False), tmp_path / "audit")
    assert [path.name for path in tmp_path.iterdir()] == ["audit"]


def test_two_at_one_folder(tmp_path):
    (tmp_path / "audit.partial").mkdir()
    with alone(tmp_path / "audit.partial", "busy"), pytest.raises(RunFolderError, match="Another audit is being written to"):
        write_audit(make_result(), tmp_path / "audit")
