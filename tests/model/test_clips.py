# SPDX-License-Identifier: Apache-2.0
"""The same results however clips are batched, ordered, repeated and spread over processes."""

from datetime import timedelta

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from avsmodel.metrics import BinaryEvaluator, FalsePositiveRate, SemanticEvaluator

COUNT, RANKS = 11, 4


def content():
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (COUNT, 2, 12, 10), generator=generator)
    scores = torch.rand(masks.shape, generator=generator)
    labels = torch.randint(0, 3, masks.shape, generator=generator)
    return scores, masks, labels


def evaluators():
    return {
        "avsbench": BinaryEvaluator(batch_size=4),
        "dataset": BinaryEvaluator("dataset"),
        "davis": BinaryEvaluator("davis"),
        "semantic": SemanticEvaluator(3),
        "silence": FalsePositiveRate("silence"),
    }


def feed(group, indices):
    scores, masks, labels = content()
    for evaluator in group.values():
        if isinstance(evaluator, BinaryEvaluator):
            evaluator.update(scores[indices], masks[indices], clips=indices)
        elif isinstance(evaluator, SemanticEvaluator):
            evaluator.update(labels[indices], masks[indices], clips=indices)
        else:
            evaluator.update(scores[indices], clips=indices)


def results(group):
    return {name: evaluator.compute() for name, evaluator in group.items()}


@pytest.fixture(scope="module")
def expected():
    group = evaluators()
    feed(group, torch.arange(COUNT))
    return results(group)


def test_loader_batches_and_order_change_nothing(expected):
    group = evaluators()
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    for indices in order.split(3):
        feed(group, indices)
    assert results(group) == expected


def test_clip_served_twice_counts_once(expected):
    group = evaluators()
    feed(group, torch.arange(COUNT))
    feed(group, torch.tensor([0, 5]))
    assert results(group) == expected


def test_merged_shards_equal_one_process(expected):
    shards = [evaluators() for _ in range(RANKS)]
    for rank, shard in enumerate(shards):
        # As a distributed sampler pads: the first clips again, so that all ranks have equally many.
        feed(shard, (torch.arange(3) * RANKS + rank) % COUNT)
    total = evaluators()
    for shard in [evaluators(), *shards]:  # one process has no clip at all
        for name, evaluator in total.items():
            evaluator.merge(shard[name].state_dict())
    assert results(total) == expected


def run_rank(rank, rendezvous, expected):
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=200),
    )
    try:
        group = evaluators()
        feed(group, torch.arange(rank, COUNT, 2))
        for evaluator in group.values():
            states = [{}, {}]
            torch.distributed.all_gather_object(states, evaluator.state_dict())
            for state in states:
                evaluator.merge(state)
        assert results(group) == expected
    finally:
        torch.distributed.destroy_process_group()


def test_real_processes_equal_one(tmp_path, expected):
    rendezvous = tmp_path / "rendezvous"
    context = torch.multiprocessing.get_context("spawn")
    other = context.Process(target=run_rank, args=(1, rendezvous, expected))
    other.start()
    try:
        run_rank(0, rendezvous, expected)
        other.join(200)
        assert other.exitcode == 0
    finally:
        other.kill()


def test_clips_numbered_by_arrival_cannot_be_merged():
    scores, masks, _ = content()
    one, other = BinaryEvaluator(), BinaryEvaluator()
    one.update(scores[:2], masks[:2])
    other.update(scores[2:4], masks[2:4])
    with pytest.raises(ValueError, match="merge: expected clips passed to update in every process"):
        one.merge(other.state_dict())
    with pytest.raises(ValueError, match="update: expected clips in every call or in none"):
        one.update(scores[:1], masks[:1], clips=[9])
