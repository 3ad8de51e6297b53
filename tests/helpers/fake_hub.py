"""A Hub in memory, in the place of huggingface_hub's client: what a push would leave in which repository."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from huggingface_hub import CommitOperationAdd

URL = "https://hub.example"


@dataclass
class Repo:
    private: bool = False
    messages: list[str] = field(default_factory=list)
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b""}])  # all files after each

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]


class FakeHub:
    """Called as `HfApi` is, it is the client; `errors` holds what a method of it raises, by name."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.errors: dict[str, Exception] = {}
        self.tokens: list[str | None] = []

    def __call__(self, token: str | None = None) -> "FakeHub":
        self.tokens.append(token)
        return self

    def _may_fail(self, method: str) -> None:
        if method in self.errors:
            raise self.errors[method]

    def create_repo(self, name: str, *, private: bool | None, exist_ok: bool) -> Any:
        self._may_fail("create_repo")
        repo_id = name if "/" in name else f"ada/{name}"
        assert exist_ok
        self.repos.setdefault(repo_id, Repo(bool(private)))
        return SimpleNamespace(repo_id=repo_id)

    def list_repo_files(self, repo_id: str, *, revision: str | None) -> list[str]:
        return list(self.repos[repo_id].files)

    def create_commit(self, repo_id: str, operations: list[Any], *, commit_message: str, revision: str | None) -> Any:
        self._may_fail("create_commit")
        repo = self.repos[repo_id]
        files = dict(repo.files)
        for operation in operations:
            if isinstance(operation, CommitOperationAdd):
                with operation.as_file() as content:
                    files[operation.path_in_repo] = content.read()
            else:
                del files[operation.path_in_repo]
        repo.commits.append(files)
        repo.messages.append(commit_message)
        return SimpleNamespace(repo_url=f"{URL}/{repo_id}")
