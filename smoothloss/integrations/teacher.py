"""A teacher's columns in the batches of any data loader.

A model that was given to `smoothloss.integrations.transformers.without_logits` finds in its batch ``teacher_indices (B,
T, K)``, ``teacher_log_probs (B, T, K)`` and, where the teacher says what is left, ``teacher_log_rest (B, T)``: what a
`smoothloss.distillation.Teacher` holds, made of the teacher's own logits at the same positions. `TeacherCollator` reads
them from a cache::

    from smoothloss.integrations.teacher import TeacherCollator
    from smoothloss.integrations.transformers import without_logits

    data = data.add_column("teacher", range(len(data)))  # the number of each sequence in the cache
    without_logits(student, teacher_share=0.7)
    Trainer(student, arguments, train_dataset=data, data_collator=TeacherCollator(collator, cache)).train()

with ``TrainingArguments(remove_unused_columns=False)``, since no model knows the column of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from smoothloss.distillation import TeacherCache
from smoothloss.integrations._loss import columns_of

__all__ = ["TeacherCollator"]


class TeacherCollator:
    """A collator that adds what a cache holds of each sequence to the batch that another one makes.

    Args:
        collator: makes a batch of examples, with ``labels (B, T)``, padded at the right.
        cache: the teachers of the sequences.
        column: where an example says which of them is its own.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], cache: TeacherCache, column: str = "teacher") -> None:
        self.collator, self.cache, self.column = collator, cache, column

    def __call__(self, examples: Iterable[Mapping[str, Any]]) -> Any:
        """Return the batch.

        Raises:
            KeyError: an example has no such column.
            IndexError: the cache has no such sequence.
            ValueError: a sequence is longer in the cache than in the batch, or padded at the left.
        """
        copies = [dict(example) for example in examples]
        numbers = [int(copy.pop(self.column)) for copy in copies]
        batch = self.collator(copies)
        labels, mask = batch["labels"], batch.get("attention_mask")
        if isinstance(mask, Tensor) and mask.shape == labels.shape and not mask[:, 0].all():
            raise ValueError("collator: got a batch that is padded at the left, expected the right, as the cache is")
        teacher = self.cache.batch(numbers, pad=(labels.shape[1], None))
        batch.update(columns_of(teacher))
        return batch
