"""Models of transformers that make their loss without logits are the same models: loss, gradients, logits, files."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from integrations.tiny_models import KINDS, V, batch

import smoothloss.functional as F
from smoothloss import SimilarityTable, distillation, targets
from smoothloss.distillation import Teacher
from smoothloss.integrations.transformers import trainer_loss, without_logits

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
ROUNDING = 2e-6  # of the size of all gradients, in float32


def shifted(model: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the labels beside the logits that they belong to."""
    if model.config.is_encoder_decoder or "Masked" in type(model).__name__:
        return labels
    return torch.nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]


@pytest.mark.parametrize("num_items", [None, 37])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_the_models_own(
    kind: str, num_items: int | None, tiny: Callable[..., Any], step: Callable[..., Any], apart: Callable[..., float]
) -> None:
    # T5 and its kin take no notice of the number; what the Trainer means by it is the sum divided by it.
    deaf = num_items is not None and ("t5" in kind or "marian" in kind or "bert" in kind)
    more = {} if num_items is None else {"num_items_in_batch": num_items}
    model = tiny(kind)
    loss, gradients = step(model, batch(), **({} if deaf else more))
    without_logits(model)
    got, made = step(model, batch(), **more)
    factor = int((batch()["labels"] != -100).sum()) / 37 if deaf else 1.0
    assert got == pytest.approx(loss * factor, rel=1e-6)
    assert apart(made, {name: value * factor for name, value in gradients.items()}) < ROUNDING


@pytest.mark.parametrize("kind", KINDS)
def test_the_trainers_loss_function_is_the_models_own(
    kind: str, tiny: Callable[..., Any], step: Callable[..., Any], apart: Callable[..., float]
) -> None:
    model = tiny(kind)
    loss, gradients = step(model, batch())
    labels = batch()["labels"]
    model.zero_grad()
    got = trainer_loss(model)(model(**batch()), labels)
    got.backward()
    made = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert got.item() == pytest.approx(loss, rel=1e-6)
    assert apart(made, gradients) < ROUNDING
    count = int((shifted(model, labels) != -100).sum())
    balance = 0.0 if "experts" not in kind else 0.1 * float(model(**batch()).aux_loss)
    divided = trainer_loss(model)(model(**batch()), labels, num_items_in_batch=torch.tensor(37))
    assert divided.item() == pytest.approx((loss - balance) * count / 37 + balance, rel=1e-5)


@pytest.mark.parametrize("name", ["router_aux_loss_coef", "aux_loss_coef"])
def test_where_models_keep_the_weight_of_their_experts_balance(name: str) -> None:
    outputs = {"logits": torch.zeros(2, 3, V), "aux_loss": torch.tensor(2.0)}
    labels = torch.ones(2, 3, dtype=torch.int64)
    plain = torch.tensor(float(V)).log().item()
    text, model = SimpleNamespace(**{name: 0.1}), SimpleNamespace()
    model.config = SimpleNamespace(get_text_config=lambda: text)
    assert trainer_loss(model)(outputs, labels).item() == pytest.approx(plain + 0.2)
    setattr(model, name, 0.3)  # its own goes before the configuration's
    assert trainer_loss(model)(outputs, labels).item() == pytest.approx(plain + 0.6)
    text, model = SimpleNamespace(), SimpleNamespace(config=model.config)
    with pytest.raises(
        TypeError, match="got SimpleNamespace with an aux_loss, expected it to have router_aux_loss_coef"
    ):
        trainer_loss(model)(outputs, labels)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_balance_of_experts_stays_in_the_loss(
    mode: str, tiny: Callable[..., Any], step: Callable[..., Any], apart: Callable[..., float]
) -> None:
    model = getattr(tiny("mixtral, experts"), mode)()
    loss, gradients = step(model, batch())
    without_logits(model)
    outputs = model(**batch())
    alone = model(**batch(), output_router_logits=False)
    assert outputs.aux_loss > 1 and alone.aux_loss is None
    assert outputs.loss.item() == pytest.approx(loss, rel=1e-6)
    assert (outputs.loss - alone.loss).item() == pytest.approx(0.1 * outputs.aux_loss.item(), rel=1e-5)
    got, made = step(model, batch())
    assert got == pytest.approx(loss, rel=1e-6)
    routers = {name: made[name] for name in made if ".gate." in name}
    assert len(routers) == 2 and all(gradient.abs().max() > 0 for gradient in routers.values())
    assert apart(made, gradients) < ROUNDING


def test_labels_that_are_shifted_already(tiny: Callable[..., Any]) -> None:
    model, labels = tiny("bart, a decoder"), batch()["labels"]
    own = model(**batch()).loss.item()
    assert trainer_loss(model, shift_labels=False)(model(**batch()), labels).item() == pytest.approx(own, rel=1e-6)
    assert trainer_loss(model)(model(**batch()), labels).item() == pytest.approx(
        F.cross_entropy(model(**batch()).logits[:, :-1], labels[:, 1:]).item(), rel=1e-6
    )
    without_logits(model)
    assert model(**batch()).loss.item() == pytest.approx(own, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_and_generation_have_logits(kind: str, tiny: Callable[..., Any]) -> None:
    model = tiny(kind).eval()
    untouched = copy.deepcopy(model)
    without_logits(model)
    with torch.no_grad():
        got, expected = model(**batch()), untouched(**batch())
    assert got.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    assert type(got) is type(expected)
    torch.testing.assert_close(got.logits, expected.logits)
    if model.can_generate():
        if "experts" in kind:  # transformers 4.57 balances them over a mask of all positions, whose states are cached
            model.config.output_router_logits = untouched.config.output_router_logits = False
        options = {"max_new_tokens": 4, "do_sample": False}
        tokens = [other.generate(batch()["input_ids"], **options) for other in (model, untouched)]
        assert torch.equal(*tokens)
        model.train()
        assert torch.equal(model.generate(batch()["input_ids"], **options), tokens[1])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_outputs_as_a_tuple(mode: str, tiny: Callable[..., Any]) -> None:
    model = getattr(tiny(), mode)()
    expected = model(**batch(), return_dict=False)
    without_logits(model)
    got = model(**batch(), return_dict=False)
    assert got[0].item() == pytest.approx(expected[0].item(), rel=1e-6)
    if mode == "eval":
        torch.testing.assert_close(got[1], expected[1])
    else:
        assert repr(got[1]) == f"HiddenLogits(shape=(3, 9, {V})): logits that were not computed"


def table() -> SimilarityTable:
    return SimilarityTable.from_embeddings(
        torch.randn(V, 8, generator=torch.Generator().manual_seed(3)), k=8, tau=0.2, exclude=range(2)
    )


@pytest.mark.parametrize("kind", ["llama", "t5, tied"])
def test_any_option(kind: str, tiny: Callable[..., Any]) -> None:
    model, labels = tiny(kind), shifted(tiny(kind), batch()["labels"])
    logits = model(**batch()).logits
    weight = torch.linspace(0.5, 2, V)
    for options in (
        {"table": table(), "alpha": 0.3}, {"label_smoothing": 0.1}, {"z_loss": 1e-3, "entropy": 0.1},
        {"weight": weight}, {"kl": True, "label_smoothing": 0.2}, {"impl": "reference"},
    ):  # fmt: skip
        expected = F.cross_entropy(logits, labels, **options).item()
        without_logits(model, **options)
        assert model(**batch()).loss.item() == pytest.approx(expected, rel=1e-6), options
        plain = model(input_ids=batch()["input_ids"], **_decoder_inputs(model)).logits
        got = trainer_loss(model, **options)({"logits": plain}, batch()["labels"])
        assert got.item() == pytest.approx(expected, rel=1e-6), options
    without_logits(model, memory="low", chunk_bytes=1 << 12)
    assert model(**batch()).loss.item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)


def _decoder_inputs(model: Any) -> dict[str, torch.Tensor]:
    if not model.config.is_encoder_decoder:
        return {}
    return {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(batch()["labels"])}


@pytest.mark.parametrize("name", ["reduction", "ignore_index", "logit_scale", "softcap"])
def test_what_the_trainer_and_the_model_decide(name: str, tiny: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=f"{name}: got 'x', expected none: the trainer and the model decide it"):
        without_logits(tiny(), **{name: "x"})
    if name in ("reduction", "ignore_index"):
        with pytest.raises(TypeError, match=f"{name}: got 'x'"):
            trainer_loss(tiny(), **{name: "x"})


def test_options_are_checked_when_they_are_given(tiny: Callable[..., Any]) -> None:
    for make in (trainer_loss, without_logits):
        with pytest.raises(ValueError, match=r"label_smoothing: got 2\.0"):
            make(tiny(), label_smoothing=2.0)
        with pytest.raises(ValueError, match=r"alpha: got 0\.5 without a table"):
            make(tiny(), alpha=0.5)
        with pytest.raises(TypeError, match="smoothing"):
            make(tiny(), smoothing=0.1)
    with pytest.raises(ValueError, match=r"teacher_share: got 1\.5"):
        without_logits(tiny(), teacher_share=1.5)
    with pytest.raises(ValueError, match="divergence: got 'kl'"):
        without_logits(tiny(), teacher_options={"divergence": "kl"})
    with pytest.raises(TypeError, match="teacher_options: got 'reduction', expected 'divergence'"):
        without_logits(tiny(), teacher_options={"reduction": "sum"})


def test_a_head_that_is_no_linear_layer_is_refused(tiny: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"got Linear with the head NoneType, expected a torch\.nn\.Linear, or take tr"):
        without_logits(torch.nn.Linear(2, 2))
    model = tiny()
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(TypeError, match=r"got LlamaForCausalLM with the head Sequential, expected a torch\.nn\.Linear"):
        without_logits(model)


def test_a_loss_that_is_made_past_the_head_is_no_silent_one(tiny: Callable[..., Any]) -> None:
    model = tiny()
    model.loss_function = lambda logits, labels, vocab_size, **other: logits.hidden.sum()
    without_logits(model)
    with pytest.raises(RuntimeError, match="LlamaForCausalLM, whose loss is no cross-entropy of its head's output"):
        model(**batch())
    assert "forward" not in model.lm_head.__dict__


def test_what_is_saved_is_what_would_be(tiny: Callable[..., Any], tmp_path: Path) -> None:
    for kind in ("llama", "gpt2, tied", "t5, tied"):
        model = tiny(kind)
        model.save_pretrained(tmp_path / "before")
        without_logits(model)
        model(**batch()).loss.backward()
        model.save_pretrained(tmp_path / "after")
        names = sorted(path.name for path in (tmp_path / "before").iterdir())
        assert names == sorted(path.name for path in (tmp_path / "after").iterdir())
        for name in names:
            assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
        assert json.loads((tmp_path / "after" / "config.json").read_text())["architectures"] == [type(model).__name__]
        again = type(model).from_pretrained(tmp_path / "after")
        assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


def test_copies_are_models_of_their_own(tiny: Callable[..., Any]) -> None:
    model = tiny()
    without_logits(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.zero_()
    assert other(**batch()).loss.item() == pytest.approx(torch.tensor(float(V)).log().item())
    assert model(**batch()).loss.item() == pytest.approx(tiny()(**batch()).loss.item(), rel=1e-6)


def test_the_last_call_counts(tiny: Callable[..., Any]) -> None:
    model = tiny()
    plain = model(**batch()).loss.item()
    without_logits(model, label_smoothing=0.5)
    assert model(**batch()).loss.item() != pytest.approx(plain, rel=1e-4)
    without_logits(model)
    assert model(**batch()).loss.item() == pytest.approx(plain, rel=1e-6)


def test_labels_may_stand_in_their_place(tiny: Callable[..., Any]) -> None:
    model = tiny()
    names = list(inspect.signature(model.forward).parameters)
    values = [batch().get(name) for name in names[: names.index("labels") + 1]]
    expected = model(*values).loss.item()
    without_logits(model, label_smoothing=0.0)
    outputs = model(*values)
    assert outputs.loss.item() == pytest.approx(expected, rel=1e-6)
    assert "not computed" in repr(outputs.logits)


@pytest.mark.parametrize("kind", ["llama", "gpt2, tied", "t5, tied"])
def test_gradient_checkpointing(
    kind: str, tiny: Callable[..., Any], step: Callable[..., Any], apart: Callable[..., float]
) -> None:
    model = tiny(kind)
    loss, gradients = step(model, batch())
    without_logits(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    got, made = step(model, batch())
    assert got == pytest.approx(loss, rel=1e-6)
    assert apart(made, gradients) < ROUNDING


@pytest.mark.slow
def test_compiled(tiny: Callable[..., Any], step: Callable[..., Any], apart: Callable[..., float]) -> None:
    model = tiny()
    loss, gradients = step(model, batch())
    without_logits(model)
    compiled = torch.compile(model, backend="aot_eager")
    model.zero_grad()
    outputs = compiled(**batch())
    outputs.loss.backward()
    made = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert outputs.loss.item() == pytest.approx(loss, rel=1e-6)
    assert "not computed" in repr(outputs.logits)
    assert apart(made, gradients) < ROUNDING


def told(model: Any, k: int = 5) -> Teacher:
    """Return what another model says of a batch."""
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
        return Teacher.from_logits(teacher(**batch()).logits, k)


def columns(teacher: Teacher) -> dict[str, Any]:
    names = {"teacher_indices": teacher.indices, "teacher_log_probs": teacher.log_probs}
    return names if teacher.log_rest is None else {**names, "teacher_log_rest": teacher.log_rest}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("num_items", [None, 37])
@pytest.mark.parametrize("kind", ["llama", "gemma2, softcap", "t5, tied"])
def test_a_teachers_columns(kind: str, num_items: int | None, share: float, tiny: Callable[..., Any]) -> None:
    model = tiny(kind)
    teacher, labels = told(model), shifted(model, batch()["labels"])
    options = {"divergence": "reverse_kl", "temperature": 2.0}
    logits, weight = model(**batch()).logits, (labels != -100).float()
    soft = distillation.loss(logits, teacher, weight=weight, reduction="sum", **options)
    total = (1 - share) * F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="sum") + share * soft
    expected = total / (weight.sum() if num_items is None else num_items)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    more = {} if num_items is None else {"num_items_in_batch": num_items}
    without_logits(model, teacher_share=share, teacher_options=options, label_smoothing=0.1)
    loss = model(**batch(), **columns(teacher), **more).loss
    torch.testing.assert_close(loss, expected)
    for got, right in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-6)
    model.eval()
    assert model(**batch(), **columns(teacher), **more).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_teacher_without_a_rest(tiny: Callable[..., Any]) -> None:
    model = tiny()
    teacher, labels = told(model), shifted(model, batch()["labels"])
    soft = targets.top_k(teacher.indices, teacher.log_probs, missing="renormalize")
    masked = targets.entries(soft.indices, soft.weights * (labels != -100).unsqueeze(-1))
    expected = F.cross_entropy(model(**batch()).logits, masked, kl=True).item()
    without_logits(model, teacher_options={"missing": "renormalize"})
    known = columns(Teacher(teacher.indices, teacher.log_probs))
    assert model(**batch(), **known).loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_teacher_that_does_not_fit(tiny: Callable[..., Any]) -> None:
    model = tiny()
    teacher = columns(told(model))
    without_logits(model)
    with pytest.raises(ValueError, match="labels: got none beside a teacher"):
        model(input_ids=batch()["input_ids"], **teacher)
    with pytest.raises(ValueError, match=r"got a part of a teacher, expected teacher_indices and teacher_log_probs"):
        model(**batch(), teacher_log_probs=teacher["teacher_log_probs"])
    short = {name: value[:, :-1] for name, value in teacher.items()}
    with pytest.raises(
        ValueError, match=r"teacher_indices: got shape \(3, 8, 5\), expected \(B, T, K\) with B \* T = 27"
    ):
        model(**batch(), **short)


LORA = [{"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}]


@pytest.mark.parametrize("first", ["adapter", "without_logits"])
@pytest.mark.parametrize("config", LORA, ids=["LoRA on the head", "the head trained beside LoRA"])
def test_an_adapter_on_the_head_is_refused(config: dict[str, Any], first: str, tiny: Callable[..., Any]) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = tiny()
    if first == "without_logits":
        without_logits(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**config))
    with pytest.raises(TypeError, match=r"no product with one weight; leave the head out of the adapter's target_mod"):
        without_logits(adapted) if first == "adapter" else adapted(**batch())


@pytest.mark.parametrize("first", ["adapter", "without_logits"])
def test_an_adapter_elsewhere(
    first: str, tiny: Callable[..., Any], step: Callable[..., Any], apart: Callable[..., float]
) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")

    def adapted(model: Any) -> Any:
        torch.manual_seed(4)
        return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))

    loss, gradients = step(adapted(tiny()), batch())
    model = tiny()
    if first == "without_logits":
        without_logits(model)
    model = adapted(model)
    if first == "adapter":
        without_logits(model)
    got, made = step(model, batch())
    assert got == pytest.approx(loss, rel=1e-6)
    assert apart(made, gradients) < ROUNDING
    assert "not computed" in repr(model(**batch()).logits)
