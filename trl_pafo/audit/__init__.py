"""What a dataset can give, before anything is trained: counts, accuracy by group, annotator noise, and what teachers of their own would add.

It trains nothing but probes, and must not know of trainers or of the folders of runs.
"""

from trl_pafo import lazily

__all__, __getattr__, __dir__ = lazily(__name__, {"AuditArguments": "options", "run_audit": "audit", "write_audit": "audit"})
