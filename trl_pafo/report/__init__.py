"""What a person looks at: the table and verdict lines of a run, and its page with pictures.

It reads what runs and evaluations left on disk, and must not know how a run is made.
"""

from trl_pafo import lazily

__all__, __getattr__, __dir__ = lazily(__name__, {"write_report": "page"})
