"""Users' tokens: how their embeddings are made of what trains, and how tokenizer and chat template write them."""

import copy
import math

import pytest
import torch
from helpers.parts import make_tokenizer

from trl_pafo.baselines.user_table import UserTable, add_user_tokens, generic_ids
from trl_pafo.data.template import add_history_template
from trl_pafo.errors import ConfigError

USERS = ["ada", 'b "x" {% }} é 😀 \\n']
MESSAGES = [{"role": "user", "content": "what is tea"}, {"role": "assistant", "content": "red \n\nblue"}]


def table_of(form, **changes):
    vocabulary = torch.randn(40, 6, generator=torch.Generator().manual_seed(3))
    options = {"first": 40, "num_users": 4, "num_tokens": 3, "num_clusters": 2, "seed": 0, **changes}
    return UserTable(form, vocabulary, **options), vocabulary


def test_individual_tokens_are_those_of_the_generic_user_plus_an_offset():
    table, _ = table_of("individual")
    given, found = table.tokens.tolist(), table().tolist()
    for user in range(5):
        for token in range(3):
            for place in range(6):
                expected = given[0][token][place] + (given[user][token][place] if user else 0.0)
                assert found[user][token][place] == pytest.approx(expected, abs=1e-6)


def test_cluster_tokens_are_a_mixture_by_softmax():
    table, _ = table_of("cluster")
    clusters, weights, found = table.tokens.tolist(), table.weights.tolist(), table().tolist()
    assert len(found) == 5
    for user in range(5):
        total = sum(math.exp(weight) for weight in weights[user])
        shares = [math.exp(weight) / total for weight in weights[user]]
        for token in range(3):
            for place in range(6):
                expected = sum(share * clusters[cluster][token][place] for cluster, share in enumerate(shares))
                assert found[user][token][place] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("form", "rows"), [("individual", 15), ("cluster", 6)])
def test_tokens_begin_as_different_words(form, rows):
    table, vocabulary = table_of(form)
    begun = table.tokens.detach().flatten(0, 1)
    places = [(vocabulary == row).all(dim=1).nonzero().item() for row in begun]
    assert len(set(places)) == len(places) == rows
    again, other = table_of(form)[0], table_of(form, seed=1)[0]
    assert torch.equal(again.tokens, table.tokens)
    assert not torch.equal(other.tokens, table.tokens)
    more, _ = table_of("individual", num_users=30)  # more tokens than words
    assert more().shape == (31, 3, 6)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize(("variables", "number"), [({}, 0), ({"user": "ada"}, 1), ({"user": USERS[1]}, 2), ({"user": "2"}, 0)])
def test_the_template_writes_the_tokens_of_a_user_behind_the_first_token(kind, variables, number):
    tokenizer = make_tokenizer(kind)
    plain = add_history_template(copy.deepcopy(tokenizer))
    tokenizer.chat_template = None if kind == "encoder" else tokenizer.chat_template + "\n"
    first = add_user_tokens(tokenizer, USERS, 3)
    assert first == len(plain)
    history = [{"prompt": "asked soup", "chosen": "yes", "rejected": "no"}]
    for more in ({}, {"history": history}):
        own = plain.apply_chat_template(MESSAGES, tokenize=True, return_dict=True, **more)["input_ids"]
        found = tokenizer.apply_chat_template(MESSAGES, tokenize=True, return_dict=True, **variables, **more)["input_ids"]
        start = 1 if kind == "encoder" else 0  # [CLS], which pooling reads, stays where it is
        tokens = [first + 3 * number + token for token in range(3)]
        assert found == [*own[:start], *tokens, *own[start:]]
        text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, **variables, **more)
        written = "".join(f"<|user-{number}-{token}|>" for token in range(3))
        assert text.replace(written, "") == plain.apply_chat_template(MESSAGES, tokenize=False, **more)


def test_a_tokenizer_with_users_is_refused():
    tokenizer = make_tokenizer("decoder")
    add_user_tokens(tokenizer, ["ada"], 2)
    with pytest.raises(ConfigError, match="has tokens of users already"):
        add_user_tokens(tokenizer, ["bo"], 2)


def test_ids_of_the_generic_user_take_the_place_of_those_of_any():
    ids = [1, 20, 21, 24, 25, 5, 28, 29, 30, 19]  # tokens of users 0 to 4 are 20 to 29
    assert generic_ids(ids, first=20, num_tokens=2, num_users=4) == [1, 20, 21, 20, 21, 5, 20, 21, 30, 19]
