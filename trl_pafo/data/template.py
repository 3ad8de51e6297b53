"""The chat template that takes a user's past pairs as the variable `history`.

Whatever applies the template (TRL, `transformers` pipelines, vLLM) serves a model with history right: pass `history=[...]` among the
`chat_template_kwargs`, newest pair first.
"""

import jinja2
from transformers import PreTrainedTokenizerBase

from trl_pafo.errors import DataError

_MARK = "{#- trl-pafo: takes `history`, newest pair first -#}"

# Text of a field that is a string or a list of messages, as [`content_text`] has it; and what is no history must not render as none.
_MACRO_AND_CHECK = """
{%- macro pafo_text(value) -%}
{%- if value is string -%}{{- value -}}
{%- elif value is mapping or value is not iterable -%}{{- raise_exception('A text, or a list of messages, is needed.') -}}
{%- else -%}
{%- for message in value -%}
{%- if not loop.first -%}{{- '\\n' -}}{%- endif -%}
{%- if message.content is string -%}{{- message.content -}}
{%- elif not message.content and not message.tool_calls -%}{{- raise_exception('A message has no content.') -}}
{%- else -%}
{%- for part in message.content or [] -%}
{{- part.text if part.text is string else raise_exception('A part of a message is no text.') -}}
{%- endfor -%}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{{- ('\\n' if message.content or not loop.first else '') + (call.function or call) | tojson -}}
{%- endfor -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set history = history if history is defined and history is not none else [] -%}
{%- if history is string or history is mapping or history is not iterable -%}
{{- raise_exception('`history` must be a list of past pairs, newest first.') -}}
{%- endif -%}
{%- for entry in history -%}
{%- if entry is not mapping or entry | reject('in', ['prompt', 'chosen', 'rejected']) | list -%}
{{- raise_exception('An entry of `history` must be a past pair with prompt, chosen, rejected, and nothing else.') -}}
{%- elif not (entry.prompt or entry.chosen or entry.rejected) -%}{{- raise_exception('An entry of `history` is empty.') -}}
{%- endif -%}
{%- for name in entry if entry[name] and not pafo_text(entry[name]) | trim -%}
{{- raise_exception('`' + name + '` of an entry of `history` is empty.') -}}
{%- endfor -%}
{%- endfor -%}"""

# For tokenizers with a template of their own: the history goes in front of the first message, whatever its role, so that
# templates that refuse a system turn, or add one themselves, work too. The newline at the end is the tag's, not the text's.
_HISTORY_PREFIX = (
    _MARK
    + _MACRO_AND_CHECK
    + """
{%- if history -%}
{%- set pafo = namespace(history='', content=messages[0].content or '') -%}
{%- for entry in history -%}
{%- for name, label in [('prompt', 'Asked: '), ('chosen', 'Liked: '), ('rejected', 'Disliked: ')] if entry[name] -%}
{%- set pafo.history = pafo.history + label + pafo_text(entry[name]) + '\\n' -%}
{%- endfor -%}
{%- endfor -%}
{%- set pafo.history = pafo.history + 'Asked: ' -%}
{%- if pafo.content is not string -%}{%- set pafo.history = [{'type': 'text', 'text': pafo.history}] -%}{%- endif -%}
{%- set messages = [dict(messages[0], content=pafo.history + pafo.content)] + messages[1:] -%}
{%- endif %}
"""
)

# For tokenizers without one: [CLS] text [SEP] text [SEP] for encoders, bos text eos text eos for decoders.
_PLAIN_TEMPLATE = (
    _MARK
    + _MACRO_AND_CHECK
    + """
{%- set pafo_end = sep_token or eos_token or '\\n' -%}
{{- bos_token or cls_token or '' -}}
{%- for entry in history -%}
{%- for value in [entry.prompt, entry.chosen, entry.rejected] if value -%}{{- pafo_text(value) + pafo_end -}}{%- endfor -%}
{%- endfor -%}
{%- for message in messages -%}{{- pafo_text([message]) + pafo_end -}}{%- endfor -%}"""
)


def add_history_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make the chat template of `tokenizer` take the variable `history`; a tokenizer without a template gets one.

    The template is changed in place and is saved with the tokenizer. A template that names `history` already is kept.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        raise DataError(
            "The tokenizer has several chat templates; set `tokenizer.chat_template` to the one that the reward model should use."
        )
    if template is None:
        tokenizer.chat_template = _PLAIN_TEMPLATE
    elif not _names_history(template):
        tokenizer.chat_template = _HISTORY_PREFIX + template
    return tokenizer


def _names_history(template: str) -> bool:
    # As a variable: many a template speaks of "the chat history" in a comment or in its default system prompt.
    return any(kind == "name" and value == "history" for _, kind, value in jinja2.Environment().lex(template))
