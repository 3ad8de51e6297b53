"""A preference pair as one row [prefix | chosen rest | rejected rest], which computes what both share once; encoders without padding.

It knows token ids and models of transformers, and neither texts, trainers nor teachers.
"""

from trl_pafo import lazily

__all__, __getattr__, __dir__ = lazily(__name__, {"choose_sharing": "choice"})
