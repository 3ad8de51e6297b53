"""Names that come from data as names of files: within one folder, each its own."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

# A file name may have 255 bytes; temporary files add an ending.
_LONGEST = 120
_RESERVED = {"con", "prn", "aux", "nul", *(f"{device}{n}" for device in ("com", "lpt") for n in range(10))}


def folder_names(names: Iterable[str]) -> dict[str, str]:
    """A name of a file or folder for each of `names`, any texts: none leads elsewhere, none is hidden, no two are one.

    Letters, digits, `_`, `-` and `.` stay, anything else becomes `_`. Where two would be the same, also to a disk that tells no
    capitals apart, and where a name is empty, too long, or one that Windows keeps for itself, a digest of it is added.
    """
    cleaned = {name: re.sub(r"[^\w.-]", "_", name).strip(".") for name in dict.fromkeys(names)}
    counts = Counter(map(_as_a_disk_may_see_it, cleaned.values()))
    return {
        name: clean if _usable(clean) and counts[_as_a_disk_may_see_it(clean)] == 1 else _with_digest(clean, name)
        for name, clean in cleaned.items()
    }


def _as_a_disk_may_see_it(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _usable(clean: str) -> bool:
    short = 0 < len(clean.encode()) <= _LONGEST
    # What looks like a name with a digest gets one too, so that it is no other's.
    return short and clean.split(".")[0].lower() not in _RESERVED and not re.search(r"-[0-9a-f]{8}$", clean)


def _with_digest(clean: str, name: str) -> str:
    beginning = clean.encode()[:_LONGEST].decode(errors="ignore")
    return f"{beginning or 'empty'}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
