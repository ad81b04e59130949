"""Tree or padded: chosen by comparing with the model's own logits, and refused where neither is
right."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import causal, tiny

from tunewright.core import findings
from tunewright.core.config import EngineConfig
from tunewright.core.errors import CompatError
from tunewright.engine import layout
from tunewright.engine import policy as forward
from tunewright.engine.policy import Policy, head_of
from tunewright.models.kernels import last_block, tree_attention
from tunewright.models.kernels.last_block import LastBlock
from tunewright.models.load import stock_attention


def policies(model: Any) -> Any:
    @contextlib.contextmanager
    def of(name: str) -> Iterator[Policy]:
        tree_attention.register()
        model.set_attn_implementation(
            tree_attention.NAME if name == "tree" else stock_attention(model)
        )
        yield Policy(model, model, name)

    return of


def choose(model: Any, wanted: str = "auto", needs: str = "any") -> tuple[str, str]:
    return layout.choose(EngineConfig(layout=wanted), model, needs, policies(model))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_known_family_takes_the_tree(family: str) -> None:
    chosen, why = choose(tiny.make_model(family))
    assert chosen == "tree", why
    assert "nats" in why


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The layouts that were tried, one entry a trial."""
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path))
    found: list[str] = []
    real = layout.disagreement

    def counted(policy_of: Any, vocabulary: int, name: str) -> float:
        found.append(name)
        return real(policy_of, vocabulary, name)

    monkeypatch.setattr(layout, "disagreement", counted)
    return found


def under(key: Any, wanted: str = "auto", model: Any = None) -> tuple[str, str]:
    model = model or tiny.make_model("llama")
    return layout.choose(EngineConfig(layout=wanted), model, "any", policies(model), key=key)


def test_a_trial_that_was_passed_is_not_made_again_and_says_so(trials: list[str]) -> None:
    first, again = under({"files": "a"}), under({"files": "a"})
    assert (first[0], again[0], trials) == ("tree", "tree", ["tree"])
    gap = first[1].split("(")[1].removesuffix(")")
    assert again[1] == (
        f"matches the stock attention on a forked sample ({gap}, from an earlier trial of the same "
        "files)"
    )


@pytest.mark.parametrize("keys", [({"files": "a"}, {"files": "b"}), (None, None)])
def test_other_files_or_no_key_are_tried(trials: list[str], keys: tuple[Any, Any]) -> None:
    reasons = [under(key)[1] for key in keys]
    assert trials == ["tree", "tree"]
    assert reasons[0] == reasons[1]


def test_each_layout_has_its_own_trial(trials: list[str]) -> None:
    for wanted in ("auto", "padded", "auto", "padded"):
        under({"files": "a"}, wanted)
    assert trials == ["tree", "padded"]


def test_a_trial_that_was_not_passed_is_made_again(trials: list[str]) -> None:
    model = tiny.make_model("llama")
    own = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        out.logits = out.logits * (0.5 + (kwargs["input_ids"] % 2)[..., None])
        return out

    model.forward = scaled
    for _ in range(2):
        with pytest.raises(CompatError):
            under({"files": "a"}, model=model)
    assert trials == ["tree", "padded"] * 2


def test_a_kept_gap_beyond_the_tolerance_counts_as_none(trials: list[str]) -> None:
    key = {"layout": "tree", "probe": layout.PROBE_VERSION, "by": {"files": "a"}}
    findings.keep("layout", key, 5.0)
    assert under({"files": "a"})[0] == "tree"
    assert trials == ["tree"]


def test_padded_can_be_asked_for_and_a_method_can_need_it() -> None:
    assert choose(tiny.make_model("llama"), "padded")[0] == "padded"
    assert choose(tiny.make_model("llama"), needs="padded")[0] == "padded"
    with pytest.raises(CompatError) as caught:
        choose(tiny.make_model("llama"), "tree", needs="padded")
    assert [p.code for p in caught.value.problems] == ["E-COMPAT-01"]


def test_layers_that_are_not_plain_attention_are_an_obstacle() -> None:
    model = tiny.make_model("llama")
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert "linear_attention" in str(layout.obstacle(model, "any"))


def test_a_tree_that_differs_falls_back_and_says_by_how_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = forward.build_tree

    def running(samples: Any) -> Any:
        tree = real(samples)
        tree.position = list(range(tree.num_rows))
        return tree

    monkeypatch.setattr(forward, "build_tree", running)
    chosen, why = choose(tiny.make_model("llama"))
    assert chosen == "padded"
    assert "differs" in why


@pytest.mark.parametrize("wanted", ["auto", "padded"])
def test_a_head_that_the_engine_does_not_know_is_refused_not_trained(wanted: str) -> None:
    """Logits that depend on more than the hidden row. Both layouts use our head, so they agree with
    one another; only the model's own logits show the difference."""
    model = tiny.make_model("llama")
    own = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        out.logits = out.logits * (0.5 + (kwargs["input_ids"] % 2)[..., None])
        return out

    model.forward = scaled
    with pytest.raises(CompatError) as caught:
        choose(model, wanted)
    assert [p.code for p in caught.value.problems] == ["E-COMPAT-04"]


def test_a_head_that_is_more_than_its_matrix_is_run_as_the_model_runs_it() -> None:
    """Whatever the family does with its hidden rows, as long as it is done row by row."""
    model = tiny.make_model("llama")
    own = model.forward

    def bent(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        out.logits = (out.logits * 0.2).tanh() * 3
        return out

    model.forward = bent
    assert choose(model)[0] == "tree"


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("granite", {"logits_scaling": 4.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("hyperclovax", {"logits_scaling": 0.25}),
        ("gemma2", {}),
    ],
)
def test_heads_with_a_scale_or_a_softcap_agree_with_the_models_own_logits(
    family: str, changes: dict[str, Any]
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {**tiny._COMMON, **tiny.FAMILIES.get(family, {}), **changes}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **sizes), dtype=torch.float32
    ).eval()
    assert choose(model)[0] == "tree"
    with policies(model)("padded") as policy:
        assert layout.disagreement(policies(model), model.config.vocab_size, "padded") < 1e-5
        assert head_of(policy.causal[0]).scale == {
            "granite": 0.25,
            "cohere": 0.25,
            "hyperclovax": 0.25,
        }.get(family, 1.0)


def test_a_plain_head_is_read_by_its_weight_and_an_adapted_one_is_called() -> None:
    model = tiny.make_model("llama")
    assert head_of(model).module is None
    tiny.attach_lora(model, ["head"])
    assert head_of(model).module is model.lm_head


def test_the_probe_forks_at_two_depths() -> None:
    from tunewright.engine.tree import build_tree

    assert (
        build_tree(layout.probe_samples(211)).num_rows
        == tiny.trie_rows(layout.probe_samples(211))
        < 3 * 23
    )


@pytest.mark.parametrize(
    ("family", "changes", "ahead"),
    [
        ("xlm", {"causal": False}, True),
        ("xlm", {"causal": True}, False),
        ("bert", {"is_decoder": False}, True),
        ("bert", {"is_decoder": True}, False),
    ],
)
def test_a_model_that_reads_later_words_is_refused(
    family: str, changes: dict[str, Any], ahead: bool, trials: list[str]
) -> None:
    """It would learn to copy: its padded rows agree with single ones all the same."""
    model = causal.model_of(family, **changes)
    if ahead:
        for wanted in ("auto", "padded", "padded"):
            with pytest.raises(CompatError) as caught:
                layout.choose(
                    EngineConfig(layout=wanted), model, "any", policies(model), key={"of": family}
                )
            assert [p.code for p in caught.value.problems] == ["E-COMPAT-92"]
    else:
        assert choose(model)[0] in ("tree", "padded")


@pytest.mark.parametrize("family", ["recurrent_gemma", "xlstm", "gemma2"])
def test_a_cap_on_logits_is_found_whatever_it_is_called(family: str) -> None:
    model = causal.model_of(family)
    assert head_of(model).softcap == 30.0
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    assert layout.disagreement(policies(model), causal.VOCABULARY, "padded") < 1e-4


def test_a_cap_by_a_name_that_nobody_knows_makes_the_whole_head_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forward, "CAPS", ())
    assert head_of(causal.model_of("recurrent_gemma")).module is not None
    assert head_of(causal.model_of("llama")).module is None


def test_the_probe_leaves_rows_out_as_a_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """LongCat-Flash has two attentions in a block: its last block must leave nothing out, and the
    trial would see it if it did."""
    model = causal.model_of("longcat_flash")
    assert not LastBlock(model).modules
    assert choose(model)[0] == "tree"
    monkeypatch.setattr(last_block, "_mixes_twice", lambda parts: False)
    assert LastBlock(model).modules
    assert choose(model)[0] == "padded"
