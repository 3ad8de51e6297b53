"""What a person looks at: the table and verdict lines of a run, its page with pictures, and several runs compared.

It reads what runs and evaluations left on disk, and must not know how a run is made.
"""

from trl_pafo import lazily

__all__, __getattr__, __dir__ = lazily(__name__, {"write_report": "page"})
