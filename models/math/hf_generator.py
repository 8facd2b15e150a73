"""Generation with a causal language model of Hugging Face; batches do not change samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from algorithms import ParameterError
from models.math.generation import PromptTooLongError, check_request, cut_at_stop, prompt_seeds

__all__ = ["HfGenerator"]


class HfGenerator:
    """A causal language model of transformers as a :class:`~models.math.generation.Generator`.

    Sampling is by Gumbel-max with one stream of random numbers a prompt, made of the seed, the
    prompt's text and how many equal prompts stand before it. So a text does not depend on the other
    prompts of a batch, up to the rounding of padded rows; equal prompts give different samples.

    Parameters
    ----------
    model: any causal language model with ``generate``. It is put into evaluation mode for the
        length of a call. Its longest sequence is ``config.max_position_embeddings``.
    tokenizer: its tokenizer; stop strings that are one token of it end a text by their id.
    batch_size: most prompts computed together, 1 or more. Prompts of like length are grouped.
    add_special_tokens: whether the tokenizer frames a prompt as it does by default, e.g. with a
        beginning of sequence. It must be what the model was trained with.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 32,
        add_special_tokens: bool = True,
    ) -> None:
        if not isinstance(model, GenerationMixin):
            raise ParameterError("model", type(model).__name__,
                                 "must be a causal language model of transformers, with generate()")
        if batch_size < 1:
            raise ParameterError("batch_size", batch_size, "must be 1 or more", 1)
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.add_special_tokens = batch_size, add_special_tokens

    def generate(
        self,
        prompts: Sequence[str],
        *,
        stop: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """As :meth:`Generator.generate <models.math.generation.Generator.generate>` says.

        Near the end of the context a text gets as many tokens as fit. Raises
        :class:`ParameterError` for an empty prompt as well.
        """
        check_request(stop, max_new_tokens, temperature)
        ids = [self._ids(prompt) for prompt in prompts]
        self._check_lengths(ids)
        streams = [torch.Generator().manual_seed(each) for each in prompt_seeds(prompts, seed)]
        texts = [""] * len(ids)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        was_training = self.model.training
        self.model.eval()  # type: ignore[no-untyped-call]
        try:
            for start in range(0, len(order), self.batch_size):
                batch = order[start:start + self.batch_size]
                noise = ([_Gumbel([streams[i] for i in batch], temperature)]
                         if temperature > 0 else [])
                new = self._generate_batch([ids[i] for i in batch], stop, max_new_tokens, noise)
                for index, text in zip(batch, new, strict=True):
                    texts[index] = text
        finally:
            self.model.train(was_training)
        return texts

    def _ids(self, prompt: str) -> list[int]:
        ids: list[int] = self.tokenizer(
            prompt, add_special_tokens=self.add_special_tokens, verbose=False)["input_ids"]
        if not ids:
            raise ParameterError("prompts", prompt, "a prompt must have one token or more")
        return ids

    def _longest(self) -> int | None:
        longest = getattr(self.model.config, "max_position_embeddings", None)
        return longest if isinstance(longest, int) else None

    def _check_lengths(self, ids: Sequence[Sequence[int]]) -> None:
        longest = self._longest()
        if longest is None:
            return
        over = [i for i, row in enumerate(ids) if len(row) >= longest]
        if over:
            worst = max(len(ids[i]) for i in over)
            raise PromptTooLongError(
                over, f"{worst} tokens", f"{len(over)} of {len(ids)} prompts leave no room for a "
                f"new token in the model's {longest}", longest - 1)

    def _generate_batch(self, ids: Sequence[list[int]], stop: Sequence[str], max_new_tokens: int,
                        processors: list[_Gumbel]) -> list[str]:
        device, width = self.model.device, max(map(len, ids))
        tokens = torch.zeros(len(ids), width, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, values in enumerate(ids):
            tokens[row, width - len(values):] = torch.tensor(values)
            mask[row, width - len(values):] = 1
        ends, strings = self._stop_ids(stop)
        longest = self._longest()
        room = torch.tensor([max_new_tokens if longest is None else
                             min(max_new_tokens, longest - len(row)) for row in ids], device=device)
        criteria = StoppingCriteriaList([_Room(width, room)])
        if strings:
            criteria.append(self._stop_strings(strings, width))
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, max_new_tokens=int(room.max()), eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0, use_cache=True,
            # What the model's own configuration would change in its distribution.
            num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0)
        out = self.model.generate(
            tokens.to(device), attention_mask=mask.to(device), generation_config=config,
            logits_processor=LogitsProcessorList(processors), stopping_criteria=criteria)
        new = out[:, width:].tolist()
        return [self._text(row[:most], ends, stop)
                for row, most in zip(new, room.tolist(), strict=True)]

    def _stop_ids(self, stop: Sequence[str]) -> tuple[list[int], list[str]]:
        """Ids that end a text, the model's own among them, and the stop strings without an id."""
        vocabulary = self.tokenizer.get_vocab()
        added = self.tokenizer.get_added_vocab()
        ids = [vocabulary[text] for text in stop if text in added]
        own = self.model.generation_config
        for ends in (self.tokenizer.eos_token_id, own.eos_token_id if own else None):
            ids += ends if isinstance(ends, list) else [] if ends is None else [ends]
        return list(dict.fromkeys(ids)), [text for text in stop if text not in added]

    def _stop_strings(self, strings: list[str], start: int) -> _NewText:
        try:
            return _NewText(StopStringCriteria(self.tokenizer, strings), start)
        except ValueError:
            raise ParameterError("stop", strings, "has a string that no token of the tokenizer's "
                                 "vocabulary can end") from None

    def _text(self, row: list[int], ends: Sequence[int], stop: Sequence[str]) -> str:
        end = next((i for i, token in enumerate(row) if token in ends), None)
        if end is not None:
            keep = self.tokenizer.convert_ids_to_tokens(row[end]) in stop
            row = row[:end + keep]
        text = self.tokenizer.decode(
            row, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return cut_at_stop(text if isinstance(text, str) else "".join(text), stop)


class _Room(StoppingCriteria):
    """Ends row ``i`` after ``room[i]`` new tokens."""

    def __init__(self, start: int, room: Tensor) -> None:
        self.start, self.room = start, room

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        return input_ids.shape[1] - self.start >= self.room


class _NewText(StoppingCriteria):
    """Stop strings in the new text alone: a prompt's last characters must not begin one."""

    def __init__(self, criteria: StopStringCriteria, start: int) -> None:
        self.criteria, self.start = criteria, start

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        ended: Tensor = self.criteria(input_ids[:, self.start:], scores)
        return ended


class _Gumbel(LogitsProcessor):
    """Adds Gumbel noise, so that the largest score is a sample of the softmax (Gumbel-max)."""

    def __init__(self, streams: Sequence[torch.Generator], temperature: float) -> None:
        self.streams, self.temperature = streams, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        size = scores.shape[-1]
        uniform = torch.stack([torch.rand(size, generator=each, dtype=torch.float64)
                               for each in self.streams])
        noise = -(-uniform.clamp_min(torch.finfo(torch.float64).tiny).log()).log()
        return scores.double() / self.temperature + noise.to(scores.device)
