"""One contestant of `engine.py` in a process of its own, with whatever its environment has.

    python engine_worker.py NAME MODEL LAYERS BATCHES

For each line on its input it runs once, and answers with a line of JSON: seconds by the clock and
of all threads, and the most memory that the run held beyond what the process had before it.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification

OWNERS = 5
WIDTH, INNER = 768, 3072  # of a BERT-base
SHAPES = [(WIDTH, WIDTH, "query"), (WIDTH, WIDTH, "key"), (WIDTH, WIDTH, "value")]
SHAPES += [(WIDTH, WIDTH, "out"), (WIDTH, INNER, "up"), (INNER, WIDTH, "down")]
"""Inputs, outputs and name of the linear layers of a transformer layer."""
SHARED = {"query": "query", "key": "query", "value": "query"}
"""Layers with a common input, by name: the first of them."""

Run = Callable[[], object]


# Collecting.


@dataclass(frozen=True)
class Work:
    """The model, of which only the first layers count, and what it runs on."""

    model: Path
    layers: int
    batches: Path

    def load(self) -> tuple[Any, list[dict[str, torch.Tensor]]]:
        """Both of them."""
        kind = AutoModelForSequenceClassification
        model = kind.from_pretrained(self.model, num_hidden_layers=self.layers)
        for parameter in model.parameters():  # mapped files come into memory when they are used
            parameter.data = parameter.data.clone()
        return model.eval(), torch.load(self.batches, weights_only=True)

    def shuffled(self) -> list[dict[str, torch.Tensor]]:
        """The same texts in batches as large, but not sorted by length."""
        batches = torch.load(self.batches, weights_only=True)
        pairs = [p for b in batches for p in zip(b["input_ids"], b["attention_mask"], strict=True)]
        texts = [ids[mask.bool()] for ids, mask in pairs]
        texts = [texts[n] for n in np.random.default_rng(0).permutation(len(texts))]
        step, padding = len(batches[0]["input_ids"]), 1
        parts = [texts[start : start + step] for start in range(0, len(texts), step)]
        padded = [pad_sequence(part, True, padding) for part in parts]
        return [{"input_ids": ids, "attention_mask": (ids != padding).long()} for ids in padded]


def forward(work: Work) -> Run:
    """What there is without any statistics."""
    model, batches = work.load()

    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(**batch)

    return run


def blindmerge(work: Work, products: Any = "float64") -> Run:
    """All Gram matrices, block by block, as an owner's session collects them."""
    from blindmerge.manifest import describe
    from blindmerge_client.batches import Batch
    from blindmerge_client.collect.gram import collect_grams
    from blindmerge_client.collect.runner import BlockRunner

    model, batches = work.load()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    manifest = describe(type(model).__name__, shapes)
    passes = [Batch(tuple(range(len(b["input_ids"]))), b) for b in batches]

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            runner = BlockRunner(model, manifest.modules, passes, Path(folder))
            for block in manifest.blocks:
                collect_grams(model, runner, block, products)

    return run


def mergelm(work: Work, *, sort: bool = True) -> Run:
    """MergeLM's hooks (Yu et al. 2024, `merging_methods.py`), their formula written anew."""
    model, batches = work.load()
    batches = batches if sort else work.shuffled()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]

    def run() -> dict[Any, torch.Tensor]:
        means: dict[Any, torch.Tensor] = {}
        counts: dict[Any, int] = {}

        def hook(layer: Any, inputs: tuple[torch.Tensor, ...], _output: Any) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            before, product = counts.get(layer, 0), torch.matmul(x.transpose(0, 1), x)
            counts[layer] = before + x.shape[0]
            if before:
                means[layer] = (means[layer] * before + product) / counts[layer]
            else:
                means[layer] = product / x.shape[0]

        handles = [layer.register_forward_hook(hook) for layer in layers]
        with torch.no_grad():
            for batch in batches:
                model(**batch)
        for handle in handles:
            handle.remove()
        return means

    return run


def fusion_bench(work: Work, *, sort: bool = True) -> Run:
    """The hooks of fusion_bench itself, on a stand-in for its CLIP loader."""
    from fusion_bench.method.regmean import clip_regmean
    from fusion_bench.method.regmean.regmean import get_modules_to_merge

    model, batches = work.load()
    batches = batches if sort else work.shuffled()
    clip_regmean.CLIPDataset = lambda dataset, _processor: dataset
    clip_regmean.DataLoader = lambda dataset, **_: dataset
    clip_regmean.tqdm = lambda steps, **_: steps
    stand_in = SimpleNamespace(
        clip_processor=None,
        dataloader_kwargs={},
        fabric=SimpleNamespace(setup_dataloaders=lambda x: x, setup=lambda x: x),
        num_regmean_examples=sys.maxsize,
        compute_logits=lambda module, batch, _task: module(**batch).logits,
    )
    layers = get_modules_to_merge(model=model, include_module_types=[torch.nn.Linear])
    collect = clip_regmean.RegMeanAlgorithmForCLIP.get_regmean_weights

    def run() -> Any:
        with torch.no_grad():
            return collect(stand_in, "model", model, batches, layers)

    return run


# The solve: one transformer layer of random statistics; a model is twelve of them.


def statistics() -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Means of x x^T in float64 by common input, and weights [outputs, inputs], of all owners."""
    rng = np.random.default_rng(0)
    grams: dict[str, list[Any]] = {}
    for inputs, _, name in SHAPES:
        if SHARED.get(name, name) == name:
            for _ in range(OWNERS):
                scales = np.geomspace(1.0, 1e-2, inputs, dtype=np.float32)
                rows = rng.standard_normal((inputs + 512, inputs), dtype=np.float32) * scales
                product = (rows.T @ rows).astype(np.float64) / len(rows)
                grams.setdefault(name, []).append(product)
    weights = {
        name: [rng.standard_normal((outputs, inputs)) / 30 for _ in range(OWNERS)]
        for inputs, outputs, name in SHAPES
    }
    return grams, weights


def solve_blindmerge(_work: Work) -> Run:
    """What the server does with the sum."""
    from blindmerge.manifest import Block, Group, Linear
    from blindmerge.merge import RegMean
    from blindmerge.statistic import Statistic, pack_symmetric

    grams, weights = statistics()
    names = {common: [n for *_, n in SHAPES if SHARED.get(n, n) == common] for common in grams}
    groups, arrays = [], {"weight": np.array([float(OWNERS)])}
    for common, group in names.items():
        outputs = {name: len(weights[name][0]) for name in group}
        layers = tuple(Linear(name=n, outputs=outputs[n], bias=False) for n in group)
        inputs = len(grams[common][0])
        groups.append(Group(name=common, inputs=inputs, rows="tokens", layers=layers))
        arrays[f"{common}:rows"], arrays[f"{common}:starved"] = np.ones(1), np.zeros(1)
        arrays[f"{common}:gram"] = pack_symmetric(sum(grams[common]))
        for name in group:
            moments = zip(grams[common], weights[name], strict=True)
            arrays[f"{name}:delta"] = np.ascontiguousarray(sum(weights[name]).T)
            arrays[f"{name}:moment"] = sum(gram @ weight.T for gram, weight in moments)
    block = Block(name="layer", module="layer", groups=tuple(groups), means=())
    method = RegMean()
    total = Statistic(method.schema_of(block), arrays)
    base = {name: np.zeros(shape) for name, shape in block.shapes.items()}
    del grams, weights

    def run() -> None:
        method.solve(block, total, base)

    return run


def solve_fusion_bench(_work: Work) -> Run:
    """fusion_bench's own merge step, in float32 as it is."""
    from fusion_bench.method.regmean.regmean import merging_with_regmean_weights

    grams, weights = statistics()
    owners = [
        {name: torch.from_numpy(grams[SHARED.get(name, name)][k]).float() for *_, name in SHAPES}
        for k in range(OWNERS)
    ]
    parameters = {
        f"{name}.weight": [torch.from_numpy(weight).float() for weight in weights[name]]
        for name in weights
    }
    del grams, weights

    def run() -> None:
        merging_with_regmean_weights(parameters, owners)

    return run


# The server's sum under masks.


def server(owners: int) -> Run:
    """Blocks of all owners come, wait in the spool, are added, and the masks taken off."""
    from bench.secagg import situation
    from blindmerge.secagg.digests import digest_of
    from blindmerge.secagg.secret import OsRandomness
    from blindmerge_server.spool import Spool
    from blindmerge_server.unmask import sum_statistic

    _, state = situation(owners, 4 << 20, 1)
    manifest, rng = state.transcript.manifest, OsRandomness()

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            spool = Spool(Path(folder), manifest)
            digests: dict[int, dict[int, bytes]] = {}
            for seat in state.transcript.sets.u3:
                digests[seat] = {}
                for block in range(manifest.parts[0].blocks):
                    payload = rng.bytes(manifest.wire_bytes(block))  # masks make it random
                    spool.write(seat, block, payload)
                    digests[seat][block] = digest_of(payload)
                spool.sync(seat)
            sum_statistic(
                replace(state, digests=digests), spool, 0, threads=torch.get_num_threads()
            )

    return run


CONTESTANTS: dict[str, Callable[[Work], Run]] = {
    "forward": forward,
    "blindmerge": blindmerge,
    "blindmerge, float32": lambda work: blindmerge(work, "float32"),
    "MergeLM": mergelm,
    "fusion_bench": fusion_bench,
    "MergeLM, texts not sorted": lambda work: mergelm(work, sort=False),
    "fusion_bench, texts not sorted": lambda work: fusion_bench(work, sort=False),
    "solve, blindmerge": solve_blindmerge,
    "solve, fusion_bench": solve_fusion_bench,
    "server, 5 owners": lambda _: server(5),
    "server, 50 owners": lambda _: server(50),
}


def _status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _measured(run: Run) -> dict[str, float]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start, busy = _status("VmRSS"), perf_counter(), process_time()
    kept = run()
    seconds, cpu_seconds = perf_counter() - start, process_time() - busy
    peak = _status("VmHWM") - before
    del kept
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak}


def main() -> None:
    """Command line."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints
        name, model, layers, batches = sys.argv[1:]
        run = CONTESTANTS[name](Work(Path(model), int(layers), Path(batches)))
        print("ready", file=answers, flush=True)
        for _ in sys.stdin:
            print(json.dumps(_measured(run)), file=answers, flush=True)


if __name__ == "__main__":
    main()
