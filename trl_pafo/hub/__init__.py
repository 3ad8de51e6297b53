"""Models on the Hub of Hugging Face, with their cards. It knows no method."""

from trl_pafo import lazily

__all__, __getattr__, __dir__ = lazily(
    __name__, {"Card": "card", "HubError": "upload", "HubMixin": "trainer_mixin", "upload_model": "upload"}
)
