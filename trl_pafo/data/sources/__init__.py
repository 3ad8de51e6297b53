"""Where preference pairs come from. Each source ends in the one schema: `prompt`, `chosen`, `rejected`, `user`, `group`
and `support_rate`, in a `DatasetDict` whose `test` split shares neither a user nor a prompt with `train`, unless it says so
(`holding_out`). It knows no model.
"""

from trl_pafo import lazily

__all__, __getattr__, __dir__ = lazily(__name__, {"DataArguments": "arguments", "load_source": "registry", "load_table": "files"})
