"""The stages of a run: data, baselines, teachers, student, evaluation, publishing. It knows no command line."""

from trl_pafo import lazily

__all__, __getattr__, __dir__ = lazily(__name__, {"Run": "run", "load_prepared": "prepare", "push_run": "publish"})
