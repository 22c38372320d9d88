"""What a recipe may say. Which fields its ``data:`` and ``model:`` have is the task's affair (see
:mod:`smoothloss_trainer.tasks`); :mod:`smoothloss_trainer.recipe` reads one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from smoothloss.rewards.bleu import Smoothing
from smoothloss_trainer.schema import (
    Count,
    CountOrNone,
    Device,
    FileName,
    FilePath,
    PartialShare,
    Seed,
    Share,
    Size,
    Temperature,
    Words,
)

LossName = Literal["mle", "label_smoothing", "tok", "seq", "seq_lazy", "tok_seq", "tok_seq_lazy", "raml"]
RewardName = Literal["none", "hamming", "edit_distance", "bleu", "cider", "rouge_l", "constant"]


def _check_norm(norm: float) -> float:
    if 0 < norm < 1e-6:
        raise ValueError(f"must be 0, which does not clip, or 1e-06 at least, got {norm}: less would train nothing")
    return norm


GradientNorm = Annotated[float, Field(ge=0), AfterValidator(_check_norm)]


@dataclass
class EmbeddingsConfig:
    """Where the word vectors behind the similarity table come from.

    Args:
        path: Vectors on disk (GloVe or word2vec text, ``.gz`` too, or ``.npz``). Left out, GloVe is trained on the
            training part's target text, as the paper did.
        dim: Size of the trained vectors.
        window: Context words on either side while training.
        epochs: Passes over the co-occurrence counts while training.
        refresh: Whether, from the second epoch of the model on, they are the rows of its own classifier as they are
            when the epoch begins: words are similar then that the model takes for each other.
    """

    path: FilePath | None = None
    dim: Size = 300
    window: Count = 15
    epochs: Count = 25
    refresh: bool = False


@dataclass
class RewardConfig:
    """What samples are worth: a reward r against the references of their input makes them weigh as exp(r / tau) / q.

    Args:
        name: ``none``: all samples weigh the same, so that the sampler's q is the distribution that smooths
            (stratified sampling). ``hamming`` and ``edit_distance`` (minus the distance to the nearest reference),
            ``bleu`` (sentence BLEU), ``cider`` (CIDEr-D, document frequencies of the training references), ``rouge_l``.
            ``constant``: r = 1, the control; without ``divide_by_q`` it is the loss of ``none``.
        tau: Temperature of the reward (tau_r).
        clip: Upper bound of the reward; the authors clip CIDEr at 1.
        normalize: ``samples``: the weights of an input's samples sum to one (Eq. 11). ``batch``: they are divided by
            the mini-batch's mean, which is what a single sample needs, and what the authors ran.
        divide_by_q: Whether weights are divided by the probability q of their sample, as Eq. 11 has it. q falls by
            exp(-1 / tau) with every edit of the sampler, so that few samples, the odd ones, get all the weight; see
            ``effective_samples`` in ``metrics.jsonl``. In the authors' code it made no difference: q was one number for
            a whole batch there. Without it the distribution that smooths is q exp(r / tau).
        references: What a sample is compared with: ``all`` references of its input, or its ``own`` ground truth alone
            (the paper's appendix B.2 has both for BLEU on captions).
        bleu_order: Longest n-grams of ``bleu``.
        bleu_smoothing: ``add-k-all`` is the paper's, one added at every order; ``none``, ``floor``, ``add-k`` and
            ``exp`` are sacrebleu's, ``coco`` coco-caption's.
    """

    name: RewardName = "none"
    tau: Temperature = 0.5
    clip: float | None = None
    normalize: Literal["samples", "batch"] = "samples"
    divide_by_q: bool = True
    references: Literal["all", "own"] = "all"
    bleu_order: Annotated[int, Field(ge=1, le=8)] = 4
    bleu_smoothing: Smoothing = "add-k-all"

    @property
    def reads_references(self) -> bool:
        """Whether the samples are compared with references."""
        return self.name not in ("none", "constant")


@dataclass
class TeacherConfig:
    """Trained models whose predictions are part of the target (word-level distillation, Kim and Rush 2016).

    Args:
        runs: Folders of runs, which stand for their best checkpoints, or checkpoint files, of models that read the same
            inputs and write the same tokens, of any size. Of several, the mean of their probabilities. Empty: there is
            no teacher.
        share: The part of the target that they have; what the loss says without them has the rest.
        classes: How many classes of their prediction are told apart, the likeliest; the mass of the others is spread as
            ``prior`` says.
    """

    runs: list[FilePath] = field(default_factory=list)
    share: Share = 0.5
    classes: Annotated[int, Field(ge=1, le=10_000)] = 32


@dataclass
class LossConfig:
    """The training loss, a row of the paper's tables.

    Args:
        name: ``mle``, ``label_smoothing`` (the control: MLE with ``label_smoothing`` spread evenly), ``tok``, ``seq``,
            ``seq_lazy``, ``tok_seq``, ``tok_seq_lazy`` or ``raml`` (``seq`` with ``alpha`` 1 and the vocabulary pool).
        alpha: Smoothed share of the target: Tok's for ``tok``, the sequence level's (alpha_1) for the others.
        token_alpha: Token level's share (alpha_2) of the Tok-Seq losses.
        final_share: What ``alpha``, ``token_alpha`` and ``label_smoothing`` have come down to in the last epoch, as a
            part of their values, in equal steps from epoch to epoch; 1: they stay. The ``alpha`` of ``raml`` stays 1.
        token_tau: Temperature of the token reward, on the full cosine (Eq. 14).
        beta: Promotion of rare tokens (Eq. 13); 0 leaves frequencies out.
        neighbours: Entries kept per row of the similarity table.
        tail: What becomes of the rest of a row: ``uniform``, ``renormalize`` or ``exact``.
        sampler: ``hamming``: substitutions; ``edit``: insertions and deletions too, for the losses that are not lazy.
        tau: Temperature of the sampler.
        pool: Where substitutes come from: ``vocabulary``, ``batch``, ``references`` (those of the same input) or
            ``similar`` (the similarity row of the token they replace).
        max_insertions: Tokens that the ``edit`` sampler inserts at most.
        num_samples: Samples per ground truth (L).
        reward: What the samples are worth.
        label_smoothing: Mass spread evenly over the vocabulary; may be added to any loss.
        prior: How the mass that lies on all classes (label smoothing's, and a ``uniform`` tail's) is spread:
            ``uniform``, or ``unigram``, by how often the training part's target text has each token, EOS included
            (Pereyra et al. 2017).
        entropy: Weight (gamma) of the entropy bonus; may be added to any loss.
        consistency: Weight of R-Drop (Liang et al. 2021), which may be added to any loss: each batch goes through the
            model twice, with other dropout, and what the model predicts in one pass is a target of the other. A step
            takes twice as long. 0: one pass.
        consistency_classes: How many classes of the other pass's prediction are told apart, the likeliest; the mass of
            the others is spread as ``prior`` says.
        embeddings: Word vectors of the similarity table.
        teacher: Trained models to learn from, beside any loss.
    """

    name: LossName = "mle"
    alpha: Share = 0.0
    token_alpha: Share = 0.0
    final_share: Share = 1.0
    token_tau: Temperature = 0.1
    beta: Annotated[float, Field(ge=0, le=1000)] = 0.0
    neighbours: Count = 64
    tail: Literal["uniform", "renormalize", "exact"] = "uniform"
    sampler: Literal["hamming", "edit"] = "hamming"
    tau: Temperature = 0.15
    pool: Literal["vocabulary", "batch", "references", "similar"] = "batch"
    max_insertions: Annotated[int, Field(ge=1, le=1000)] = 4
    num_samples: Annotated[int, Field(ge=1, le=10_000)] = 1
    reward: RewardConfig = field(default_factory=RewardConfig)
    label_smoothing: PartialShare = 0.0
    prior: Literal["uniform", "unigram"] = "uniform"
    entropy: Annotated[float, Field(ge=0, le=10)] = 0.0
    consistency: Annotated[float, Field(ge=0, le=100)] = 0.0
    consistency_classes: Annotated[int, Field(ge=1, le=10_000)] = 32
    embeddings: EmbeddingsConfig = field(default_factory=EmbeddingsConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)

    @property
    def smooths_tokens(self) -> bool:
        """Whether the loss gives some of a token's mass to similar ones."""
        return self.name in ("tok", "tok_seq", "tok_seq_lazy")

    @property
    def needs_table(self) -> bool:
        """Whether the loss needs a similarity table, to smooth tokens or to draw similar ones."""
        return self.smooths_tokens or (self.samples_sequences and self.pool == "similar" and self.name != "raml")

    @property
    def samples_sequences(self) -> bool:
        """Whether the loss draws sequences around the ground truth."""
        return self.name in ("seq", "seq_lazy", "tok_seq", "tok_seq_lazy", "raml")

    @property
    def is_lazy(self) -> bool:
        """Whether samples are scored on the ground truth's own states, in one forward pass."""
        return self.name in ("seq_lazy", "tok_seq_lazy")

    @property
    def changes(self) -> bool:
        """Whether epochs have losses of their own."""
        return self.final_share < 1 or self.embeddings.refresh

    def in_epoch(self, epoch: int, epochs: int) -> LossConfig:
        """The settings with what ``final_share`` leaves of the shares in an epoch, counted from 0."""
        part = 1 - (1 - self.final_share) * epoch / max(1, epochs - 1)
        shares = {name: part * getattr(self, name) for name in ("alpha", "token_alpha", "label_smoothing")}
        return replace(self, **shares)


@dataclass
class OptimizerConfig:
    """Adam and its learning-rate schedule.

    Args:
        lr: Learning rate of the first epoch.
        betas: Adam's two decay rates.
        eps: Adam's denominator floor.
        weight_decay: Decoupled weight decay.
        schedule: ``step`` (``decay`` below), ``cosine`` (to 0 at the end of training) or ``inverse_sqrt``; see
            :func:`smoothloss_trainer.optimizer.learning_rate`.
        warmup_steps: Steps in which the learning rate rises to ``lr``, before any schedule.
        decay: Of ``step``: factor applied to the learning rate every ``decay_every`` epochs from ``decay_start`` on.
        decay_every: Of ``step``: epochs between two decays.
        decay_start: Of ``step``: epoch (counted from 0) in which the first decay is in force.
    """

    lr: Annotated[float, Field(ge=1e-9, le=100)] = 1e-3
    betas: Annotated[tuple[PartialShare, PartialShare], Field(strict=False)] = (0.9, 0.999)  # a list in YAML
    eps: Annotated[float, Field(ge=1e-30, le=1)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.0
    schedule: Literal["step", "cosine", "inverse_sqrt"] = "step"
    warmup_steps: CountOrNone = 0
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    decay_every: Count = 1
    decay_start: CountOrNone = 1


@dataclass
class TrainingConfig:
    """How long and how to train.

    Args:
        epochs: Passes over the training part.
        batch_size: Target sequences per batch, of which each process takes ``accumulate`` a step.
        pad_to_multiple_of: The widths of a training batch (target, source, references) are rounded up to a multiple of
            this, so that batches come in few shapes; 1 adds no padding. Dropout draws for padding too, and so differs.
        accumulate: Batches whose gradients make one step, as if they were one batch; what samplers and rewards draw
            from one batch, they draw from each. A run that is resumed by another number of processes goes on with the
            batches a step that it began with.
        parallel: What several processes do: ``ddp``: each has all weights; ``fsdp``: weights, gradients and moments
            are spread over them (FSDP2), for models that one device does not hold.
        workers: Processes that prepare batches while a step is computed, for each process that trains; null: one for
            a GPU, none on the CPU, whose cores they would take. They change no result.
        graphs: On a CUDA device, forward, loss and backward are recorded as a CUDA graph for each shape of batch, the
            optimizer as another, and replayed: one launch in place of hundreds. For one process; ``pad_to_multiple_of``
            8, say, keeps the shapes few.
        precision: ``bfloat16`` runs forward passes under autocast; weights, loss and optimizer stay in float32.
            ``float64`` has everything in it, to compare runs.
        clip: Largest gradient norm; 0 does not clip.
        max_steps: Stop after so many steps, whatever the epoch; null: when the epochs are done.
        max_minutes: Stop after so many minutes of training (validation included), at a step's end; null: when the
            epochs are done.
        log_every: Steps between two lines of training loss in ``metrics.jsonl``.
        checkpoint_every: Steps between two checkpoints inside an epoch; 0 keeps those of the epochs' ends.
        validate_every: Epochs between two validations; the last epoch is always validated.
        metric: The validation score that chooses the best checkpoint and that ``patience`` waits for, such as
            ``bleu_4``, or ``loss``, the loss per token; left out, the task's own (``bleu``, ``cider``).
        patience: Stop after so many validations without a better metric; 0 never does.
        keep_checkpoints: Keep the models of the last so many validations besides the best one, to be averaged; 0 keeps
            none.
        tensorboard: Write what ``metrics.jsonl`` holds to ``tensorboard/`` too.
        test: Whether the best checkpoint is scored on the test splits at the end. Otherwise nothing of them is kept or
            looked at, and it is scored on the validation part.
    """

    epochs: Count = 10
    batch_size: Count = 64
    pad_to_multiple_of: Annotated[int, Field(ge=1, le=1024)] = 1
    accumulate: Count = 1
    parallel: Literal["ddp", "fsdp"] = "ddp"
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    graphs: bool = False
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    clip: GradientNorm = 1.0
    max_steps: Count | None = None
    max_minutes: Annotated[float, Field(ge=0.01)] | None = None
    log_every: Count = 50
    checkpoint_every: CountOrNone = 500
    validate_every: Count = 1
    metric: Words | None = None
    patience: CountOrNone = 0
    keep_checkpoints: CountOrNone = 0
    tensorboard: bool = False
    test: bool = True


@dataclass
class DecodingConfig:
    """Beam search or sampling.

    Args:
        method: ``beam`` searches for the best outputs, ``sample`` draws them.
        beam_size: Hypotheses kept by the beam search; 1 is greedy search.
        length_penalty: A hypothesis is ranked by its log-probability / length ** length_penalty; 0 ranks by the sum.
        max_length: Longest output in tokens, the end-of-sentence token not counted.
        n_best: Hypotheses written per input; so many are drawn with ``sample``. The best one is scored.
        suppress_unk: Never write the unknown word.
        no_repeat_ngram_size: No n-gram of this size may occur twice in an output; 0 allows repeats.
        temperature: Of ``sample``: draws from softmax(logits / temperature).
        top_k: Of ``sample``: draws from the so many most probable tokens; 0 from all.
        top_p: Of ``sample``: draws from the fewest tokens that make up this mass (nucleus); 1 from all.
        seed: Of ``sample``: seeds the draws of each split.
        validation_beam_size: Beam of the validation after each epoch, which chooses the best checkpoint. It is always
            a beam search.
        batch_size: Inputs decoded together.
    """

    method: Literal["beam", "sample"] = "beam"
    beam_size: Count = 3
    length_penalty: Annotated[float, Field(ge=0, le=10)] = 1.0
    max_length: Count = 60
    n_best: Count = 1
    suppress_unk: bool = False
    no_repeat_ngram_size: CountOrNone = 0
    temperature: Temperature = 1.0
    top_k: CountOrNone = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Seed = 1
    validation_beam_size: Count = 1
    batch_size: Count = 100

    def for_validation(self) -> DecodingConfig:
        """The search that chooses the best checkpoint."""
        return replace(self, method="beam", beam_size=self.validation_beam_size, n_best=1)


@dataclass
class Recipe:
    """A whole training run.

    Args:
        task: ``translation``, ``captioning`` or another name in :data:`smoothloss_trainer.tasks.TASKS`.
        data: The task's data section.
        model: The task's model section.
        name: Shown in reports and names the run directory.
        seed: Seeds weights, batches, dropout and samples.
        device: ``auto`` (a CUDA GPU when there is one), ``cpu``, ``cuda``, ``cuda:1``, or ``mps``, for the losses
            ``mle`` and ``label_smoothing`` alone: samples and similarity tables need float64, which MPS has not.
        loss: The training loss.
        optimizer: Adam and its schedule.
        training: How long and how to train.
        decoding: Beam search or sampling.
    """

    task: str
    data: Any
    model: Any
    name: FileName = "run"
    seed: Seed = 1
    device: Device = "auto"
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
